"""Police."""

from schemas.department import Department

DEPARTMENT = Department(name="Police", contact="data@police.example", purpose="Answering calls, and planning of beats")
