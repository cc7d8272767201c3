"""What rules observe: rows of numbers and of numbers of texts, whatever they were made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from processors.tables import Flags, Integers

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Observations:
    """Rows of a series by event time (ms) and offset: numbers of their texts, and values, NaN for null."""

    times: Integers
    texts: Integers
    values: Numbers

    def __len__(self) -> int:
        return len(self.times)

    def where(self, wanted: Flags | Integers) -> Observations:
        """Some of the rows."""
        return Observations(self.times[wanted], self.texts[wanted], self.values[wanted])


def together(rows: Sequence[Observations]) -> Observations:
    """Rows of one series, one after the other."""
    return Observations(
        np.concatenate([one.times for one in rows]),
        np.concatenate([one.texts for one in rows]),
        np.concatenate([one.values for one in rows]),
    )
