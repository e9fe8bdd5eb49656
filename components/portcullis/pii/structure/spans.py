"""Findings as arrays of places."""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from portcullis.pii.entities import PRIORITY, Entity
from portcullis.pii.reading import Ints

NONE = np.zeros(0, np.intp)


@dataclass(frozen=True)
class Spans:
    """Findings in a reading as arrays of one length: where each starts, where it ends (exclusive), and its priority."""

    starts: Ints
    ends: Ints
    ranks: npt.NDArray[np.uint8]


def spans_of(starts: Ints, ends: Ints, entity: Entity) -> Spans:
    """Return findings that are all of one entity."""
    return Spans(starts, ends, np.full(len(starts), PRIORITY[entity], np.uint8))


def joined(parts: Collection[Spans]) -> Spans:
    """Return the findings of all parts, overlapping ones united and in order.

    Nothing that any saw is left, and the entity that comes first in priority names a union.
    """
    parts = [part for part in parts if len(part.starts)]
    if not parts:
        return Spans(NONE, NONE, np.zeros(0, np.uint8))
    starts = np.concatenate([part.starts for part in parts])
    ends = np.concatenate([part.ends for part in parts])
    ranks = np.concatenate([part.ranks for part in parts])
    if len(parts) > 1 or (starts[1:] < starts[:-1]).any():
        order = np.argsort(starts, kind="stable")
        starts, ends, ranks = starts[order], ends[order], ranks[order]
    reach = np.maximum.accumulate(ends)
    heads = np.append(True, starts[1:] >= reach[:-1])
    if heads.all():
        return Spans(starts, ends, ranks)
    heads = np.flatnonzero(heads)
    return Spans(starts[heads], np.maximum.reduceat(ends, heads), np.minimum.reduceat(ranks, heads))
