"""Tables that do not fit into memory: what streams is bounded, and what changes meanwhile is refused."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from portcullis.dataset import DatasetSpec
from portcullis.errors import DataError
from portcullis.files import PinnedFile
from portcullis.ingest.readers import open_source, read_source
from portcullis.table import PIECE_BYTES, logical_root, stream_parquet

SPEC = """
name: small
label: {column: label, classes: ["no", "yes"]}
features: {columns: [a, b], shape: [2], low: 0, high: 1000000}
sensitive: {note: scan}
"""
ROWS = 60_000
# Reads, masks, seals, opens and searches a table in a process of its own; prints by how many MiB its memory grew.
CHILD = """
import sys
from pathlib import Path
from portcullis.at_rest import seal_dataset, stream_sealed
from portcullis.dataset import DatasetSpec
from portcullis.files import PinnedFile
from portcullis.ingest.readers import open_source
from portcullis.pii.mask import mask_stream, mask_table
from portcullis.pii.plan import MaskingPlan
from portcullis.pii.entities import Entity
from portcullis.pii.residual import judge_residual, search_residual
from portcullis.sealing.recipients import SealingPrivateKey

def peak():  # not ru_maxrss, which begins with what the process held that started this one
    return next(int(it.split()[1]) >> 10 for it in open("/proc/self/status") if it.startswith("VmHWM:"))

source, small, out = sys.argv[1:4]
spec = DatasetSpec.from_yaml(Path(out + ".yaml").read_text())
key = SealingPrivateKey.generate()
plan = MaskingPlan((Entity.EMAIL, Entity.US_SSN), {"note": "scan"})

def run(uri, to):
    opened = open_source(uri, spec)
    masked = mask_stream(opened.table, plan, key=bytes(32))
    seal_dataset(Path(to), masked.table, opened.spec, recipient=key.public_key())
    with stream_sealed(Path(to), key=key) as read:
        found = search_residual(read.table.schema, read.table.pieces(), plan)
    assert not judge_residual(found), judge_residual(found)
    return found.rows

run(small, out + "-small")
before = peak()
rows = run(source, out + "-large")
print(rows, peak() - before)
"""


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("streams")
    note = "the text of row {0}, of nobody in particular, " * 20 + "write to user{0}@example.com, 219-09-{1:04d}"
    for name, rows in (("small", 20_000), ("large", ROWS * 2)):
        with (folder / f"{name}.csv").open("w") as file:
            file.write("a,b,note,label\n")
            for row in range(rows):
                text = note.format(row, row % 9000 + 1)
                file.write(f'{row},{row % 7}.5,"{text}",{"yes" if row % 2 else "no"}\n')
    return folder


def test_a_table_passes_through_in_bounded_memory(sources: Path) -> None:
    large = sources / "large.csv"
    assert large.stat().st_size > 100 << 20
    (sources / "out.yaml").write_text(SPEC)
    command = [sys.executable, "-c", CHILD, str(large), str(sources / "small.csv"), str(sources / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows, grown = map(int, done.stdout.split())
    assert rows == ROWS * 2
    assert grown <= 128, f"memory grew by {grown} MiB with the size of the table"


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_source_that_changes_after_it_was_digested_is_refused(tmp_path: Path, kind: str) -> None:
    spec = DatasetSpec.from_yaml(SPEC)
    path = tmp_path / f"a.{kind}"
    rows = [{"a": 1, "b": 2.5, "note": "x", "label": "no"}, {"a": 3, "b": 4.5, "note": "y", "label": "yes"}]

    def write(rows: list[dict[str, object]]) -> None:
        table = pa.Table.from_pylist(rows)
        if kind == "parquet":
            pq.write_table(table, path)
        elif kind == "csv":
            path.write_text("a,b,note,label\n" + "".join(",".join(map(str, row.values())) + "\n" for row in rows))
        else:
            path.write_text(table.to_pandas().to_json(orient="records", lines=True))

    write(rows)
    opened = open_source(str(path), spec)
    assert logical_root(opened.table) == logical_root(read_source(str(path), spec).table)
    write([rows[0] | {"note": "z"}, rows[1]])
    with pytest.raises(DataError, match="changed while it was read"):
        list(opened.table.pieces())


def test_a_source_that_became_a_link_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("a,b,note,label\n1,2,x,no\n")
    opened = open_source(str(path), DatasetSpec.from_yaml(SPEC))
    path.rename(tmp_path / "b.csv")
    path.symlink_to(tmp_path / "b.csv")
    with pytest.raises(DataError, match="cannot read"):
        list(opened.table.pieces())


def test_parquet_that_unfolds_without_end_is_refused_before_it_does(tmp_path: Path) -> None:
    text = "x" * (1 << 20)
    table = pa.table({"s": pa.array([text] * 300, pa.large_string())})
    pq.write_table(table, tmp_path / "a.parquet", compression="zstd", use_dictionary=False, row_group_size=300)
    assert (tmp_path / "a.parquet").stat().st_size < 1 << 20
    before = pa.total_allocated_bytes()
    with (tmp_path / "a.parquet").open("rb") as file, pytest.raises(DataError, match="100 times the file's size"):
        stream_parquet(PinnedFile(file, "a.parquet"), "a.parquet")
    assert pa.total_allocated_bytes() - before < 1 << 20


@pytest.mark.parametrize("keep_dictionary", [True, False])
def test_a_large_text_that_all_rows_of_a_group_name_is_refused_early(tmp_path: Path, keep_dictionary: bool) -> None:
    """Some kilobytes, 400 GB in memory; no 1,024 rows of it take more than 256 MiB."""
    texts = pa.array(["x" * 200_000]).dictionary_encode()
    table = pa.table({"s": texts.take(pa.array(np.zeros(2_000_000, np.int32)))})
    path = tmp_path / "a.parquet"
    pq.write_table(table, path, compression="zstd", row_group_size=2_000_000, store_schema=keep_dictionary)
    assert path.stat().st_size < 1 << 16
    with path.open("rb") as file:
        stream = stream_parquet(PinnedFile(file, "a.parquet"), "a.parquet")
        read: list[int] = []

        def read_on() -> None:
            before = pa.total_allocated_bytes()
            for piece in stream.pieces():
                read.append(piece.num_rows)
                assert sum(read) * 200_000 < 256 << 20
                assert pa.total_allocated_bytes() - before < 256 << 20

        with pytest.raises(DataError, match="a row group unfolds to more than 100 times the file's size"):
            read_on()


def test_short_texts_that_millions_of_rows_name_are_read(tmp_path: Path) -> None:
    names = pa.array(["Bavaria", "Saxony", None, "Mecklenburg-Vorpommern"]).dictionary_encode()
    table = pa.table({"s": names.take(pa.array(np.repeat(np.arange(4, dtype=np.int32), 1_000_000)))})
    path = tmp_path / "a.parquet"
    pq.write_table(table, path, compression="zstd", row_group_size=4_000_000)
    assert path.stat().st_size < 1 << 16
    with path.open("rb") as file:
        stream = stream_parquet(PinnedFile(file, "a.parquet"), "a.parquet")
        assert sum(piece.num_rows for piece in stream.pieces()) == 4_000_000


def test_parquet_of_one_large_row_group_is_read_in_small_pieces(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    texts = [rng.bytes(1 << 14).hex() for _ in range(2_000)]
    pq.write_table(
        pa.table({"s": texts}),
        tmp_path / "a.parquet",
        row_group_size=2_000,
        data_page_size=1 << 16,
        write_batch_size=16,
    )
    del texts
    with (tmp_path / "a.parquet").open("rb") as file:
        stream = stream_parquet(PinnedFile(file, "a.parquet"), "a.parquet")
        before, most, rows = pa.total_allocated_bytes(), 0, 0
        for piece in stream.pieces():
            assert piece.nbytes <= PIECE_BYTES + (1 << 15)
            most, rows = max(most, pa.total_allocated_bytes() - before), rows + piece.num_rows
    assert rows == 2_000
    assert most < 48 << 20, f"{most >> 20} MiB of a column of 62 MiB were held"
