"""Police."""

DEPARTMENT = "Police"
