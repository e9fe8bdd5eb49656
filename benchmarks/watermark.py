"""`watermark`: what it costs to mark a model, and to read the mark; random weights, no GPU."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks import Record, command, compare
from portcullis.digest import sha256
from portcullis.watermark.mark import Claim, embed, read

KEY = bytes(range(32))
CLAIM = Claim("benchmark", sha256(b"unmarked"))


def weights(millions: int) -> dict[str, NDArray[np.float32]]:
    """Return a model of so many million weights, in ten square-like tensors."""
    generator = np.random.default_rng(0)
    shape = (2000, millions * 50)
    return {f"layer{index}": generator.standard_normal(shape, dtype=np.float32) for index in range(10)}


def measure(quick: bool) -> Sequence[Record]:  # noqa: FBT001
    """Return the records of this benchmark."""
    records = _measured(25, rounds=3 if quick else 7, target=1.5)
    return records if quick else [*records, *_measured(100, rounds=3, target=6)]


def _measured(millions: int, *, rounds: int, target: float) -> list[Record]:
    tensors = weights(millions)
    marked = embed(tensors, KEY, CLAIM).tensors
    return [
        compare(
            f"mark {millions} million weights",
            lambda: embed(tensors, KEY, CLAIM),
            None,  # the published schemes mark while training
            rounds=rounds,
            target=target,
        ),
        compare(
            f"read the mark of {millions} million weights",
            lambda: read(marked, KEY, CLAIM),
            None,
            rounds=rounds,
            target=target / 3,
        ),
    ]


if __name__ == "__main__":
    command("watermark", measure)
