"""Grassroots governance."""

from schemas.department import Department

DEPARTMENT = Department(
    name="Grassroots governance",
    contact="cases@grassroots-governance.example",
    purpose="Following what is reported until it is handled",
)
