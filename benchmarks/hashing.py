"""`hashing`: the digests of a table beside JSON and SHA-256 per row, and those of a file beside plain `hashlib`.

The table has ten columns of the kinds that customers' tables have. The peer's rows are dictionaries already; ours start
at the table, check it, and build the Merkle trees too.
"""

import functools
import hashlib
import json
import secrets
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks import Record, command, compare
from portcullis.digest import file_digest
from portcullis.table import logical_root, row_digests, table_digests


def customers(rows: int) -> pa.Table:
    """Return a made-up table: five columns of text, two of integers, two of floats, one of booleans; one has nulls."""
    generator = np.random.default_rng(0)

    def text(width: int) -> list[str]:
        return [f"{value:0{width}x}" for value in generator.integers(0, 16 ** min(width, 15), rows)]

    return pa.table(
        {
            "id": np.arange(rows),
            "name": text(12),
            "email": text(20),
            "zip": text(5),
            "age": generator.integers(18, 91, rows),
            "balance": generator.normal(size=rows).round(2),
            "score": pa.array(generator.normal(size=rows), mask=generator.random(rows) < 0.1),
            "active": generator.random(rows) < 0.5,
            "note": text(60),
            "created": text(10),
        }
    )


def measure(quick: bool) -> Sequence[Record]:  # noqa: FBT001
    """Return the records of this benchmark."""
    return [*_rows(20_000 if quick else 100_000, rounds=5 if quick else 9), _file(5 if quick else 9)]


def _rows(count: int, *, rounds: int) -> list[Record]:
    table = customers(count)
    rows = table.to_pylist()

    def peer() -> None:
        for row in rows:
            hashlib.sha256(json.dumps(row, sort_keys=True).encode()).digest()

    kinds = (
        ("row merkle", logical_root, 12),
        ("row merkle and every column's", table_digests, None),
        ("a digest for each row", row_digests, None),
    )
    return [
        compare(
            f"{name}, {count:,} rows",
            functools.partial(digest, table),
            peer,
            peer_name="json.dumps(sort_keys) + sha256",
            rounds=rounds,
            target=target,
        )
        for name, digest, target in kinds
    ]


def _file(rounds: int) -> Record:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.parquet"
        with path.open("wb") as stream:
            for _ in range(256):
                stream.write(secrets.token_bytes(1 << 20))

        def peer() -> None:
            digest = hashlib.sha256()
            with path.open("rb") as stream:
                while chunk := stream.read(1 << 20):
                    digest.update(chunk)
            digest.hexdigest()

        return compare(
            "sha256 streaming vs hashlib, 0.25 GB",
            lambda: file_digest(path),
            peer,
            peer_name="hashlib",
            rounds=rounds,
            target=0.9,
        )


if __name__ == "__main__":
    command("hashing", measure)
