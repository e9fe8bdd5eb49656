"""Laws of malformed records: where a file is cut decides nothing, and none touches what is read of the others."""

import io
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pyarrow as pa
from hypothesis import example, given
from hypothesis import strategies as st

from portcullis.dataset import DatasetSpec, Features, Label
from portcullis.errors import DataError
from portcullis.ingest.column_types import Survey
from portcullis.ingest.csv_table import CsvBlock, read_csv
from portcullis.ingest.jsonl_table import JsonlBlock, read_jsonl
from portcullis.ingest.malformed import Malformed

SPEC = DatasetSpec("x", Label("l", ("u", "v")), Features(("f",), (1,), 0, 9), quarantine_at_most=1000)
Blocks = Iterator[CsvBlock] | Iterator[JsonlBlock]


def sifted(read: Callable[..., Blocks], data: bytes, block: int) -> tuple[list[dict[str, Any]], list[Malformed]] | None:
    """Return the sound rows and the malformed records; None for a file that is refused."""
    try:
        blocks = list(read(io.BytesIO(data), block_bytes=block, check=Survey(SPEC).faults))
    except DataError:
        return None
    malformed = [it for one in blocks for it in one.malformed]
    assert sum(one.records for one in blocks) == sum(len(one.table) for one in blocks) + len(malformed)
    return [row for one in blocks for row in one.table.to_pylist()], malformed


def strict(read: Callable[..., Blocks], data: bytes) -> list[dict[str, Any]] | None:
    """Return the rows; None for a file that is refused, by its form or by the description."""
    survey = Survey(SPEC)

    def refuse(mask: pa.ChunkedArray, *_: str) -> bool:
        if any(mask.to_pylist()):
            raise DataError("a bad cell")
        return False

    try:
        blocks = list(read(io.BytesIO(data)))
        for one in blocks:
            survey.check(one.table, lambda _: refuse)
    except DataError:
        return None
    return [row for one in blocks for row in one.table.to_pylist()]


def hold(read: Callable[..., Blocks], data: bytes, block: int) -> None:
    found = sifted(read, data, 1 << 20)
    assert sifted(read, data, block) == found
    read_strictly = strict(read, data)
    if found is None:
        assert read_strictly is None
        return
    rows, malformed = found
    assert (read_strictly == rows) if not malformed else (read_strictly is None)
    rest, end = b"", 0
    for it in malformed:
        assert end <= it.offset and it.line == data.count(b"\n", 0, it.offset) + 1
        assert data[it.offset : it.offset + len(it.data)] == it.data
        rest += data[end : it.offset]
        end = it.offset + len(it.data) + 1
        assert data[end - 1 : end] in (b"\n", b"")
    rest += data[end:]
    # A file that is nothing but its header is refused.
    assert strict(read, rest) == (rows or None)


CSV = [
    *(b"a", b'"', b",", b"\n", b"\r\n", b"\r", b"\xc3", b"\xc3\xa9", b"\0", b"1", b'""', b'"x\ny"'),
    *(b"1,u,a\n", b"2,v,\n", b'3,u,"x\ny"\n', b'4,v,""""\n', b"x,u,a\n", b"10,u,a\n", b"1,w,a\n", b",u,a\n", b"1,u\n"),
    *(b'1,u,a"b"\n', b'1,u,"a\n', b"1,u,\xff\n", b"1,u,\0\n", b'w,u,"x\n\n"\n', b"1,u,a\rb\n", b'"1"2,u,a\n', b"\n"),
]


@given(st.lists(st.sampled_from(CSV), max_size=14), st.integers(3, 60))
@example([b"1,u,a\n", b'1,u,"a\n', b"1,u,a\n", b'1,u,"a\n'], 5)
def test_of_csv(pieces: list[bytes], block: int) -> None:
    hold(read_csv, b"f,l,t\n" + b"".join(pieces), block)


@given(st.lists(st.sampled_from([b"a", b'"', b",", b"\n", b"\r\n", b"\r", b"\xff", b'"\n"', b"\0"]), max_size=14))
def test_of_csv_of_one_column(pieces: list[bytes]) -> None:
    spec_free = partial(read_csv, block_bytes=3, check=lambda _: {})
    data = b"a\n" + b"".join(pieces)
    try:
        blocks = list(spec_free(io.BytesIO(data)))
        whole = list(read_csv(io.BytesIO(data), check=lambda _: {}))
    except DataError:
        return
    assert [it for one in blocks for it in one.malformed] == [it for one in whole for it in one.malformed]
    assert [row for one in blocks for row in one.table.to_pylist()] == [
        row for one in whole for row in one.table.to_pylist()
    ]


LINES = [
    *(b'{"f":1,"l":"u","t":"x"}', b'{"t":null,"f":2,"l":"v"}', b'{"f":3,"l":"u","t":7}', b'{"f":4,"l":"u","t":true}'),
    *(
        b'{"f":"5","l":"u","t":"x"}',
        b'{"f":99,"l":"u","t":3}',
        b'{"f":1,"l":"w","t":true}',
        b'{"f":null,"l":"u","t":1}',
    ),
    *(b'{"f":1,"l":"u"}', b'{"f":1,"l":"u","t":1,"z":2}', b'{"f":1,"f":1,"l":"u","t":1}', b'{"f":1,"l":"u","t":[]}'),
    *(b'{"f":NaN,"l":"u","t":1}', b"{", b"7", b"", b"\xff", b"\0", b'{"f":1,"l":"u","t":"\\u0000"}', b"\r"),
    *(b'{"f":1,"l":"u","t":"\\ud800"}', b'{"f":1,\r"l":"u","t":"x"}', b'{"f":1e999,"l":"u","t":"x"}'),
]


@given(
    st.lists(st.tuples(st.sampled_from(LINES), st.sampled_from([b"\n", b"\n", b"\r\n", b""])), max_size=10),
    st.integers(3, 90),
)
def test_of_json_lines(lines: list[tuple[bytes, bytes]], block: int) -> None:
    data = b"".join(line + end for line, end in lines)
    hold(read_jsonl, b'{"f":0,"l":"u","t":null}\n' + data, block)
    hold(read_jsonl, data, block)
