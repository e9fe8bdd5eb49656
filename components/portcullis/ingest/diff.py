"""How two tables differ: in their columns, in which blocks of rows, in which rows. No value is ever told.

Tables are compared over the columns that both have, by name and with one type, wherever they stand. *Blocks* are
compared by position, up to the end of the shorter table: the same 1,024 rows as a digest's block
(`portcullis.table`). *Rows* are compared by content, as often as they occur and wherever they stand, so that a row that
was put in at the top is one added row although every block after it changed.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow as pa

from portcullis.at_rest import open_dataset, pipeline_key
from portcullis.dataset import SPEC_FILE, DatasetSpec, parse_dataset, read_dataset
from portcullis.ingest.readers import read_source, read_table
from portcullis.sealing.sealed import SIDECAR
from portcullis.table import LEAF_ROWS, logical_root, row_digests, table_digests, table_schema


@dataclass(frozen=True)
class ChangedBlock:
    """Rows `first` to `last`, both from 1 and inclusive, and the columns in which some of them differ."""

    first: int
    last: int
    columns: tuple[str, ...]


@dataclass(frozen=True)
class Difference:
    """How table B differs from table A.

    Attributes:
        roots: Logical roots of A and B.
        rows: Numbers of rows of A and B.
        only_a: Columns that only A has, in its order.
        only_b: Columns that only B has, in its order.
        retyped: Columns of both with different types: name to A's type and B's. Their cells are not compared.
        reordered: Whether the columns of both stand in another order.
        blocks: The blocks that differ, over the rows that both have.
        rows_only_a: Rows of A, from 1, that B does not have, or not as often.
        rows_only_b: Rows of B, from 1, that A does not have, or not as often.
    """

    roots: tuple[str, str]
    rows: tuple[int, int]
    only_a: tuple[str, ...] = ()
    only_b: tuple[str, ...] = ()
    retyped: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    reordered: bool = False
    blocks: tuple[ChangedBlock, ...] = ()
    rows_only_a: tuple[int, ...] = ()
    rows_only_b: tuple[int, ...] = ()

    @property
    def equal(self) -> bool:
        """Whether the two are one table: names, types, order, every cell."""
        return self.roots[0] == self.roots[1]

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of both in which some block differs, in A's order."""
        return tuple(dict.fromkeys(name for block in self.blocks for name in block.columns))


def open_table(source: str, spec: DatasetSpec | None = None) -> pa.Table:
    """Read a data set, or whatever `ingest` reads. One that a step wrote is sealed; `pipeline.pem` opens it.

    Args:
        source: The directory of a data set, or a URI as of `read_source`.
        spec: How the columns of a source are typed; a data set has its own description.

    Raises:
        UsageError: As `read_source`, or PORTCULLIS_KEYS is not set.
        KeyMaterialError: There is no key to open a sealed data set.
        SealError: A sealed data set was altered, or is sealed for another key.
        DataError: The source or data set is malformed.
        ConfigError: The description contradicts the header.
        MissingDependencyError: The built-in data needs scikit-learn.
    """
    directory = Path(source)
    if directory.is_dir() and (directory / SPEC_FILE).is_file():
        return read_dataset(directory).table
    if directory.is_dir() and (directory / SIDECAR).is_file():
        return parse_dataset(open_dataset(directory, key=pipeline_key())).table
    return read_source(source, spec).table if spec else read_table(source)


def diff_tables(a: pa.Table, b: pa.Table) -> Difference:
    """Compare two tables.

    Raises:
        DataError: A table has no canonical form.
    """
    roots = logical_root(a), logical_root(b)
    rows = a.num_rows, b.num_rows
    if roots[0] == roots[1]:
        return Difference(roots, rows)
    types_a, types_b = dict(table_schema(a)), dict(table_schema(b))
    common = [name for name in types_a if name in types_b]
    same = [name for name in common if types_a[name] == types_b[name]]
    difference = Difference(
        roots=roots,
        rows=rows,
        only_a=tuple(name for name in types_a if name not in types_b),
        only_b=tuple(name for name in types_b if name not in types_a),
        retyped={name: (types_a[name], types_b[name]) for name in common if name not in same},
        reordered=common != [name for name in types_b if name in types_a],
    )
    if not same:
        return difference
    a, b = a.select(same), b.select(same)
    digests_a, digests_b = row_digests(a), row_digests(b)
    return replace(
        difference,
        blocks=tuple(_blocks(a, b, min(rows))),
        rows_only_a=_without(digests_a, Counter(digests_b)),
        rows_only_b=_without(digests_b, Counter(digests_a)),
    )


def _blocks(a: pa.Table, b: pa.Table, rows: int) -> Iterable[ChangedBlock]:
    blocks_a, blocks_b = table_digests(a.slice(0, rows)).blocks, table_digests(b.slice(0, rows)).blocks
    for index, start in enumerate(range(0, rows, LEAF_ROWS)):
        changed = tuple(name for name in a.column_names if blocks_a[name][index] != blocks_b[name][index])
        if changed:
            yield ChangedBlock(start + 1, min(start + LEAF_ROWS, rows), changed)


def _without(rows: Sequence[bytes], others: Counter[bytes]) -> tuple[int, ...]:
    """Return the rows, from 1, that find no partner among the others, each of which is a partner once."""
    alone = []
    for number, digest in enumerate(rows, start=1):
        if others[digest] > 0:
            others[digest] -= 1
        else:
            alone.append(number)
    return tuple(alone)
