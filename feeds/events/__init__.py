"""Major events."""

from schemas.department import Department

DEPARTMENT = Department(
    name="Major events", contact="office@events.example", purpose="Keeping the city moving while something big goes on"
)
