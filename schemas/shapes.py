"""Areas and lines as GeoJSON texts: held to what can be computed with before they are anybody's reference data."""

from __future__ import annotations

from collections.abc import Mapping

import shapely
from shapely.errors import ShapelyError

#: The geometries of GeoJSON that each shape may be.
GEOMETRIES: Mapping[str, tuple[str, str]] = {
    "area": ("Polygon", "MultiPolygon"),
    "line": ("LineString", "MultiLineString"),
}


def shape_problem(kind: str, text: str) -> str | None:
    """What is wrong with a text that has to be an area or a line, read after the value; None if it is one."""
    try:
        geometry = shapely.from_geojson(text)
    except ShapelyError as error:
        return f"is no GeoJSON geometry: {str(error).strip().rpartition(': ')[2]}"
    if geometry.geom_type not in GEOMETRIES[kind]:
        return f"is a {geometry.geom_type} and no {' or '.join(GEOMETRIES[kind])}"
    if geometry.is_empty:
        return "is empty"
    west, south, east, north = geometry.bounds
    if not (-180 <= west <= east <= 180 and -90 <= south <= north <= 90):
        return "has a corner that is no longitude and latitude in WGS 84"
    if not geometry.is_valid:
        return f"is not valid: {shapely.is_valid_reason(geometry)}"
    return None
