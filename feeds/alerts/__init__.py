"""What the rules of all departments raise."""

DEPARTMENT = "Operations centre"
