"""Parking."""

DEPARTMENT = "Urban management"
