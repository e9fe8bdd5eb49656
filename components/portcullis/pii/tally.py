"""Counting what masking found, piece by piece."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from portcullis.pii.reading import Ints
from portcullis.pii.scan import rows_of

# How many rows are named to show where something was found.
MOST_POSITIONS = 5
_BEGINNING = 1 << 10


@dataclass
class Tally:
    """What was found in one reading of a table; `kinds` are its plan's."""

    kinds: tuple[str, ...]
    rows: int = 0
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    positions: dict[str, dict[str, tuple[int, ...]]] = field(default_factory=dict)

    def add(self, column: str, codes: Any, ranks: npt.NDArray[np.uint8], values: Ints) -> None:
        """Count what was found in values, by its rank, once for each row whose code is that value."""
        counts = self.counts.setdefault(column, Counter())
        positions = self.positions.setdefault(column, {})
        if not len(values):
            return
        rows = rows_of(codes, int(values.max()) + 1)[values]
        totals = np.bincount(ranks, weights=rows).astype(np.int64)
        of_row = codes.fill_null(-1).to_numpy()
        hits = np.zeros(max(int(of_row.max()), int(values.max())) + 2, np.bool_)  # the last is that of a null
        for rank in np.flatnonzero(totals).tolist():
            entity = str(self.kinds[rank])
            counts[entity] += int(totals[rank])
            known = positions.get(entity, ())
            if len(known) < MOST_POSITIONS:
                hits[:] = False
                hits[values[ranks == rank]] = True
                found = _first_set(hits, of_row, MOST_POSITIONS - len(known))
                positions[entity] = (*known, *(self.rows + found + 1).tolist())


def _first_set(hits: npt.NDArray[np.bool_], of_row: Ints, most: int) -> Ints:
    """Return the first rows whose value is hit; they mostly stand near the beginning."""
    found = np.flatnonzero(hits[of_row[:_BEGINNING]])[:most]
    return found if len(found) == most or len(of_row) <= _BEGINNING else np.flatnonzero(hits[of_row])[:most]
