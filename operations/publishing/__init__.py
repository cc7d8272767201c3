"""Publishing a department's file: mapped, checked, sorted by event time, sent, reported."""
