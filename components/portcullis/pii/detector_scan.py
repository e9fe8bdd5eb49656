"""What detectors find, as places in the bytes of values."""

import itertools
from typing import Any

import numpy as np

from portcullis.pii.detectors import LoadedDetector
from portcullis.pii.scan import Found, found_of


class DetectorFinder:
    """Finds what a detector finds; see `portcullis.pii.scan.Finder`.

    Args:
        loaded: The detector.
        ranks: The rank of each entity that the policy makes of what it finds.
    """

    def __init__(self, loaded: LoadedDetector, ranks: dict[str, int]) -> None:
        self._loaded = loaded
        self._ranks = {its: ranks[ours] for its, ours in loaded.choice.entities.items()}

    def __call__(self, values: Any, column: str) -> Found:  # noqa: ARG002 - a detector is given texts alone
        """Return what the detector finds in a large_string array without nulls."""
        texts = values.to_pylist()
        rows = []
        found = sorted(self._loaded.detections(texts))
        for index, detections in itertools.groupby(found, key=lambda it: it.text):
            text = texts[index]
            place = (
                range(len(text) + 1)
                if text.isascii()
                else [0, *np.cumsum([len(character.encode()) for character in text]).tolist()]
            )
            rows += [(index, place[it.start], place[it.end], self._ranks[it.entity]) for it in detections]
        return found_of(rows)
