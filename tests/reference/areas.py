"""Whether an area covers a place, in plain Python and exact numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any

Point = tuple[Fraction, Fraction]


@dataclass(frozen=True)
class CoveredBy:
    """How a row is asked for whose area, a field of it, covers a place."""

    area: str
    place: Mapping[str, float] | None

    def is_covered(self, values: Mapping[str, Any]) -> bool:
        """Whether a row's area covers the place."""
        area = values[self.area]
        return self.place is not None and area is not None and covers(json.loads(area), self.place)


def covers(area: Mapping[str, Any], place: Mapping[str, float]) -> bool:
    """Whether a place lies in an area or on its border."""
    polygons = area["coordinates"] if area["type"] == "MultiPolygon" else [area["coordinates"]]
    at = Fraction(place["longitude"]), Fraction(place["latitude"])
    return any(_within(polygon, at) for polygon in polygons)


def _within(rings: list[list[list[float]]], at: Point) -> bool:
    """Whether a line from a point to the east crosses the rings an odd number of times, or the point lies on one."""
    inside = False
    for ring in rings:
        corners = [(Fraction(x), Fraction(y)) for x, y, *_ in ring]
        for (x1, y1), (x2, y2) in pairwise(corners):
            turn = (x2 - x1) * (at[1] - y1) - (y2 - y1) * (at[0] - x1)
            if turn == 0 and min(x1, x2) <= at[0] <= max(x1, x2) and min(y1, y2) <= at[1] <= max(y1, y2):
                return True
            if (y1 > at[1]) != (y2 > at[1]) and (turn > 0) == (y2 > y1):
                inside = not inside
    return inside
