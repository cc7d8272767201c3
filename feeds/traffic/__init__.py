"""Traffic."""

from schemas.department import Department

DEPARTMENT = Department(
    name="Traffic police", contact="data@traffic-police.example", purpose="Control of traffic, and planning of roads"
)
