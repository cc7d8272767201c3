"""What the rules of all departments raise."""

from schemas.department import Department

DEPARTMENT = Department(
    name="Operations centre", contact="duty@operations-centre.example", purpose="Watching over the city"
)
