"""Procedures that people start. They say how far they are to whoever asked, and print nothing."""
