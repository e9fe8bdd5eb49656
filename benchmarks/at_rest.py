"""`at_rest`: what it costs that data sets rest sealed, beside the same data set in plain text; random numbers."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks import Record, command, compare
from portcullis.at_rest import open_dataset, seal_dataset
from portcullis.dataset import DatasetSpec, Features, Label, parse_dataset, read_dataset, write_dataset
from portcullis.sealing.recipients import SealingPrivateKey

COLUMNS = tuple(f"x{index:02}" for index in range(25))
SPEC = DatasetSpec("random", Label("label", ("0", "1")), Features(COLUMNS, (25,), 0, 1))


def table(megabytes: int) -> pa.Table:
    """Return a table that no compression makes smaller, of 8 bytes a cell."""
    generator = np.random.default_rng(0)
    rows = megabytes * 1_000_000 // (8 * len(COLUMNS))
    features = {name: generator.random(rows) for name in COLUMNS}
    return pa.table({**features, "label": generator.integers(2, size=rows)})


def measure(quick: bool) -> Sequence[Record]:  # noqa: FBT001
    """Return the records of this benchmark."""
    megabytes, rounds = (50, 3) if quick else (200, 5)
    rows, key = table(megabytes), SealingPrivateKey.generate()
    with tempfile.TemporaryDirectory(prefix="portcullis-bench-") as folder:
        sealed, plain = Path(folder) / "sealed", Path(folder) / "plain"
        return [
            compare(
                f"write a data set of {megabytes} MB",
                lambda: seal_dataset(sealed, rows, SPEC, recipient=key.public_key()),
                lambda: write_dataset(plain, rows, SPEC),
                peer_name="in plain text",
                rounds=rounds,
                target=None,
            ),
            compare(
                f"read a data set of {megabytes} MB",
                lambda: parse_dataset(open_dataset(sealed, key=key)),
                lambda: read_dataset(plain),
                peer_name="in plain text",
                rounds=rounds,
                target=None,
            ),
        ]


if __name__ == "__main__":
    command("at_rest", measure)
