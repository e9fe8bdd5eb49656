"""A source read and masked over shards gives what it gives as a whole: the same types, rows, digests and counts."""

import csv
import io
import json
import re
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from portcullis.dataset import DatasetSpec, Features, Label
from portcullis.digest import path_digest
from portcullis.errors import DataError
from portcullis.evidence.shards import Shard
from portcullis.files import PinnedFile
from portcullis.ingest import parts
from portcullis.ingest.column_types import typed
from portcullis.ingest.parts import Part, Place, cut, record_starts, source_part
from portcullis.ingest.plan import Plan, ShardSurvey, plan_of
from portcullis.ingest.readers import SourceStream, open_source, read_pieces, setting_aside, survey
from portcullis.ingest.stage import planned_source
from portcullis.pii.mask import mask_stream
from portcullis.pii.plan import MaskingPlan
from portcullis.table import TableStream, head_of, stream_of, table_digests

SPEC = DatasetSpec("small", Label("label", ("no", "yes")), Features(("f",), (1,), -1000, 1000), {"zip": "token"})
PLAN = MaskingPlan.parse({"entities": ["EMAIL", "PERSON_NAME", "US_SSN"], "columns": {"zip": "token"}})
KEY = bytes(range(32))
NAMES = ["Mary", "John", "Linda", "James", "Susan", "Robert", "Karen", "Michael", "Nancy", "David", "Lisa", "Daniel"]

# What a column of text turns out to be depends on all of its cells: whole numbers until one is not, and so on.
WORDS = st.sampled_from(
    ["1", "-7", "3.5", "0.50", "true", "false", "007", "", "a@example.com", 'say "x",\n1', "123-45-6789"]
)
ROWS = st.lists(
    st.tuples(st.integers(-9, 9), WORDS, st.sampled_from(NAMES), st.none() | st.sampled_from(["02139", "94105"])),
    min_size=1,
    max_size=60,
)


def columns_of(rows) -> dict[str, list]:
    return {
        "f": [row[0] for row in rows],
        "mixed": [row[1] or None for row in rows],
        "first_name": [row[2] for row in rows],
        "zip": [row[3] for row in rows],
        "label": ["yes" if row[0] % 2 else "no" for row in rows],
    }


def write(path: Path, kind: str, rows, group: int) -> None:
    columns = columns_of(rows)
    if kind == "parquet":
        types = {"f": pa.int64()} | dict.fromkeys(("mixed", "first_name", "zip", "label"), pa.string())
        pq.write_table(pa.table(columns, schema=pa.schema(types)), path, row_group_size=group)
    elif kind == "jsonl":
        lines = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        # Keys may stand in any order; that of the first line is the table's.
        texts = [json.dumps(line if at % 3 == 0 else dict(reversed(line.items()))) for at, line in enumerate(lines)]
        path.write_text("\n".join(texts) + "\n" * (len(rows) % 2))
    else:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([columns, *zip(*columns.values(), strict=True)])
        path.write_text(text.getvalue())


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return lambda: tmp_path_factory.mktemp("source")


def over_shards(uri: str, count: int, spec: DatasetSpec = SPEC) -> tuple[Plan, list[SourceStream], list[pa.Table]]:
    """Do what the steps do, without their evidence: survey, plan, and read each shard; also the shards' heads."""
    shards = [Shard(index, count) for index in range(count)]
    sources = [source_part(uri, shard, spec) for shard in shards]
    surveys, heads = [], []
    for shard, source in zip(shards, sources, strict=True):
        found = survey(source.sources, spec, at_most=spec.quarantine_at_most)
        check = setting_aside(spec, found.malformed)
        surveys.append(ShardSurvey.parse(ShardSurvey.of(shard, source, found).encode()))
        heads.append(head_of(TableStream(found.columns, found.rows, partial(read_pieces, source.sources, check))))
    plan = Plan.parse(plan_of(surveys, spec).encode())
    return plan, [planned_source(it, plan, shard, spec) for it, shard in zip(sources, shards, strict=True)], heads


@settings(max_examples=30)
@given(
    rows=ROWS,
    kind=st.sampled_from(["csv", "jsonl", "parquet"]),
    count=st.integers(2, 5),
    files=st.integers(1, 6),
    group=st.integers(1, 20),
    chunk=st.sampled_from([1 << 20, 7]),
)
def test_shards_are_the_whole_source(folders, rows, kind, count, files, group, chunk) -> None:
    folder = folders() / "data"
    folder.mkdir()
    size = -(-len(rows) // files)
    written = [rows[start : start + size] for start in range(0, len(rows), size)]
    for index, some in enumerate(written):
        write(folder / f"part-{index}.{kind}", kind, some, group)
    uri = str(folder) if len(written) > 1 else str(folder / f"part-0.{kind}")
    try:
        whole = open_source(uri, SPEC)
    except DataError:
        assume(False)  # files that as a whole are refused; the stages' tests show that their shards are
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "_CHUNK", chunk)
        try:
            plan, made, heads = over_shards(uri, count)
        except DataError as error:
            if "use fewer shards" not in str(error):
                raise
            return
    streams = [it.table for it in made]
    assert plan.schema == whole.table.schema and sum(plan.rows) == whole.table.rows
    assert plan.raw == whole.raw_digest == path_digest(Path(uri))
    assert plan.files == whole.files
    table = pa.concat_tables(list(whole.table.pieces())).combine_chunks()
    joined = pa.concat_tables([piece for it in streams for piece in it.pieces()]).combine_chunks()
    assert table_digests(joined) == table_digests(table)

    masked = mask_stream(whole.table, PLAN, key=KEY)
    expected = pa.concat_tables(list(masked.table.pieces())).combine_chunks()
    head = stream_of(pa.concat_tables([typed(it, plan.schema) for it in heads]))
    assert head.rows == whole.table.rows  # so few they are
    parts_masked = [mask_stream(it, PLAN, key=KEY, head=head) for it in streams]
    got = pa.concat_tables([piece for it in parts_masked for piece in it.table.pieces()]).combine_chunks()
    assert table_digests(got) == table_digests(expected)
    counts: dict[tuple[str, str], int] = {}
    for it in parts_masked:
        for column, entities in it.report().counts.items():
            for entity, found in entities.items():
                counts[column, entity] = counts.get((column, entity), 0) + found
    stated = {(column, entity): n for column, it in masked.report().counts.items() for entity, n in it.items()}
    assert {key: n for key, n in counts.items() if n} == {key: n for key, n in stated.items() if n}


def test_a_shard_s_own_head_would_decide_otherwise() -> None:
    """The head matters: names in the first rows, and none after; by its own head a shard would leave them."""
    table = pa.table({"c": [*NAMES * 4, *["x"] * 200], "label": ["a"] * 248})
    plan = MaskingPlan.parse({"entities": ["PERSON_NAME", "EMAIL"]})
    part = stream_of(table.slice(100))
    alone, by_head = mask_stream(part, plan, key=KEY), mask_stream(part, plan, key=KEY, head=stream_of(table))
    whole = mask_stream(stream_of(table), plan, key=KEY)
    rows = [pa.concat_tables(list(it.table.pieces())).column("c").to_pylist() for it in (alone, by_head, whole)]
    if rows[2][100:] == rows[0]:
        pytest.fail("this table shows nothing")
    assert rows[1] == rows[2][100:]


def test_a_head_of_another_table_is_refused() -> None:
    table = stream_of(pa.table({"c": ["x"]}))
    with pytest.raises(DataError, match="the head has other columns"):
        mask_stream(table, PLAN, key=KEY, head=stream_of(pa.table({"d": ["x"]})))


# --- malformed records ------------------------------------------------------------------------------------------------

TOLERANT = replace(SPEC, quarantine_at_most=1000)
HEADERS = {"csv": b"f,label,zip\n", "jsonl": b'{"f":0,"label":"no","zip":null}\n'}
RECORDS = {
    "csv": [
        *(b"1,no,02139", b'7,yes,"a\nb"', b"2,no,", b'3,yes,""""'),
        *(
            b'1,no,a"b"',
            b"1,no",
            b"x,no,1",
            b"1,w,1",
            b"2000,no,1",
            b",no,1",
            b"1,no,\xff",
            b'1,no,"\xff\n"',
            b"1,no,a\rb",
        ),
    ],
    "jsonl": [
        *(b'{"f":1,"label":"no","zip":"x"}', b'{"zip":null,"label":"yes","f":2}', b'{"f":3,"label":"no","zip":7}'),
        *(b"", b"{", b"7", b"\xff", b"\xef\xbb\xbf", b'{"f":1,"label":"no"}', b'{"f":"1","label":"no","zip":true}'),
        *(b'{"f":1,"label":"w","zip":7}', b'{"f":1,"label":"no","zip":[]}', b'{"f":1,"label":"no","zip":"\\ud800"}'),
    ],
}


@settings(max_examples=60)
@given(
    data=st.data(),
    kind=st.sampled_from(["csv", "jsonl"]),
    count=st.integers(2, 5),
    files=st.integers(1, 3),
    chunk=st.sampled_from([1 << 20, 7]),
)
def test_shards_set_aside_what_the_whole_source_sets_aside(folders, data, kind, count, files, chunk) -> None:
    folder = folders() / "data"
    folder.mkdir()
    for index in range(files):
        records = data.draw(st.lists(st.sampled_from(RECORDS[kind]), min_size=1, max_size=24))
        end = data.draw(st.sampled_from([b"\n", b"\r\n"]))
        written = HEADERS[kind] + end.join([*records, b""] if data.draw(st.booleans()) else records)
        (folder / f"part-{index}.{kind}").write_bytes(written)
    try:
        whole = open_source(str(folder), TOLERANT)
    except DataError:
        whole = None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "_CHUNK", chunk)
        try:
            plan, made, _ = over_shards(str(folder), count, TOLERANT)
        except DataError as error:
            if whole and not re.search("use fewer shards|every record is malformed", str(error)):  # in a part of it
                raise
            return
    assert whole is not None, "the shards read what is refused as a whole"
    assert plan.schema == whole.table.schema
    aside = list(whole.set_aside())
    assert [it for shard in made for it in shard.set_aside()] == aside
    assert sum(map(Counter, plan.malformed), Counter()) == Counter(whole.malformed)
    assert sum(it.records for it in made) == whole.records
    pieces = [list(it.table.pieces()) for it in (whole, *made)]
    first, *others = (pa.concat_tables(it).combine_chunks() for it in pieces)
    assert table_digests(pa.concat_tables(others).combine_chunks()) == table_digests(first)
    exact = replace(TOLERANT, quarantine_at_most=len(aside))
    assert over_shards(str(folder), count, exact)[0] == plan
    if aside:
        with pytest.raises(DataError):
            over_shards(str(folder), count, replace(TOLERANT, quarantine_at_most=len(aside) - 1))


# --- the cut ----------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=30), st.integers(2, 40))
def test_a_cut_covers_every_file_once_and_in_order(sizes, count) -> None:
    files = [(f"{index:02}", size) for index, size in enumerate(sizes)]
    found = cut(files, count)
    assert len(found) == count and all(part.paths for part in found)
    if len(files) >= count:
        assert [path for part in found for path in part.paths] == [path for path, _ in files]
        assert {(part.piece, part.pieces) for part in found} == {(0, 1)}
    else:
        by_file: dict[str, list[Part]] = {}
        for part in found:
            (path,) = part.paths
            by_file.setdefault(path, []).append(part)
        assert list(by_file) == [path for path, _ in files]
        for pieces in by_file.values():
            assert [part.piece for part in pieces] == list(range(len(pieces)))
            assert {part.pieces for part in pieces} == {len(pieces)}


def test_parts_of_whole_files_are_even() -> None:
    files = [(f"{index:03}", 10) for index in range(100)]
    assert [len(part.paths) for part in cut(files, 4)] == [25, 25, 25, 25]
    assert cut([("a", 1), ("b", 1), ("c", 98)], 2) == [Part(("a", "b")), Part(("c",))]
    assert cut([("a", 10), ("b", 90)], 4) == [Part(("a",)), Part(("b",), 0, 3), Part(("b",), 1, 3), Part(("b",), 2, 3)]


@given(
    st.text(alphabet='ab,"\n', max_size=60),
    st.lists(st.integers(0, 60), min_size=1, max_size=4),
    st.sampled_from([1, 2, 64]),
)
def test_a_record_starts_after_a_line_break_that_no_quotes_enclose(text, offsets, chunk) -> None:
    data = text.encode()
    offsets = sorted(min(it, len(data)) for it in offsets)
    file = PinnedFile(io.BytesIO(data), "f")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "_CHUNK", chunk)
        for quoted in (True, False):
            starts = [0]
            inside = False
            for at, byte in enumerate(data):
                inside ^= quoted and byte == ord('"')
                if byte == ord("\n") and not inside:
                    starts.append(at + 1)
            places = [Place(it, data.count(b"\n", 0, it) + 1, record) for record, it in enumerate(starts)]
            end = Place(len(data), data.count(b"\n") + 1, len(starts) - 1)
            expected = [next((it for it in places if it.offset >= offset), end) for offset in offsets]
            assert record_starts(file, offsets, quoted=quoted) == expected
