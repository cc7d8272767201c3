"""What is simulated, told apart from what is real."""

from schemas.department import Department

DEPARTMENT = Department(
    name="Exercise", contact="exercise@operations-centre.example", purpose="Holding rules to the truth"
)
