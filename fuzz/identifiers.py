"""Targets that look for personal identifiers: the scanner, and a round of masking."""

import itertools
from collections.abc import Sequence

import pyarrow as pa

from fuzz import Target
from portcullis.errors import DataError
from portcullis.pii.entities import Entity
from portcullis.pii.mask import mask_table
from portcullis.pii.plan import MaskingPlan
from portcullis.pii.residual import residual_figures
from portcullis.pii.scan import Span, find, scan
from portcullis.pii.tokens import TOKEN

_ENTITIES = tuple(Entity)
_COLUMNS = ("note", "phone", "ssn", "routing_number", "passport", "born", "zip", "age", "name")
_KEY = bytes(range(32))


def _cells(data: bytes) -> tuple[str, list[str]]:
    """Take the column's name from the first byte, and cells between null bytes of the rest."""
    return _COLUMNS[data[0] % len(_COLUMNS) if data else 0], data[1:].decode(errors="replace").split("\0")


def fuzz_scan(data: bytes) -> None:
    """Spans lie inside their text and apart, and depend neither on other cells nor on how often a value occurs."""
    column, texts = _cells(data)
    found = find(texts, _ENTITIES, column=column)
    for index, spans in found.items():
        assert all(0 <= span.start < span.end <= len(texts[index]) for span in spans)
        assert all(one.end <= two.start for one, two in itertools.pairwise(spans))
    for index, text in enumerate(texts):
        assert find([text], _ENTITIES, column=column).get(0, ()) == found.get(index, ())
    once, often = (scan(pa.array(texts * times), _ENTITIES, column=column) for times in (1, 3))
    assert {entity: 3 * count for entity, count in once.counts().items()} == dict(often.counts())
    # Whoever looks for more finds all that whoever looks for less does.
    wider = find(texts, _ENTITIES, column=column, recall=True)
    for index, spans in found.items():
        more = {place for span in wider.get(index, ()) for place in range(span.start, span.end)}
        assert more.issuperset(place for span in spans for place in range(span.start, span.end))


def fuzz_mask(data: bytes) -> None:
    """Masked text scans clean, and keeps no identifier that was found in it; masked again it stays as it is."""
    column, texts = _cells(data)
    plan = MaskingPlan(_ENTITIES, {}, "recall" if data[:1] >= b"\x80" else "strict")
    table = pa.table({column: pa.array(texts, pa.string())})
    masked, report = mask_table(table, plan, key=_KEY)
    cells = masked[column].to_pylist()
    counted = sum(report.counts[column].values())
    if report.profiled:  # The column as a whole holds dates, say: each cell was replaced.
        assert counted == len(texts)
    else:
        found = find(texts, _ENTITIES, column=column, recall=plan.detection == "recall")
        assert counted == sum(map(len, found.values()))
        for index, (text, cell) in enumerate(zip(texts, cells, strict=True)):
            _check_replaced(text, found.get(index, ()), cell)
        again, _ = mask_table(masked, plan, key=_KEY)
        assert again[column].to_pylist() == cells
    assert not find(cells, _ENTITIES, column=column, recall=plan.detection == "recall")
    before, after = (residual_figures(it, plan)["residual_identifiers"] for it in (table, masked))
    assert after <= before, "the gate sees more after masking than before"
    tokens, _ = mask_table(table, MaskingPlan(_ENTITIES, {column: "token"}), key=_KEY)
    figures = residual_figures(tokens, MaskingPlan(_ENTITIES, {column: "token"}))
    assert figures["untokenised_cells"] == figures["residual_identifiers"] == 0


def _check_replaced(text: str, spans: Sequence[Span], cell: str) -> None:
    if not spans:
        assert cell == text
        return
    assert TOKEN.search(cell)
    rest = TOKEN.sub("\0", cell)
    for span in spans:
        value = text[span.start : span.end]
        assert text.count(value) > 1 or value not in rest


def fuzz_table(data: bytes) -> None:
    """A table of two columns, one of them numbers, is masked so that the gate refuses nothing that was found."""
    text, _, numbers = data.partition(b"\n\n")
    integers = [int.from_bytes(numbers[place : place + 8], "little", signed=True) for place in range(0, 64, 8)]
    column, texts = _cells(text)
    rows = max(len(texts), 1)
    table = pa.table({column: [*texts], "count": [integers[row % 8] for row in range(rows)]})
    plan = MaskingPlan(_ENTITIES, {})
    try:
        masked, _ = mask_table(table, plan, key=_KEY)
    except DataError:
        return
    assert masked["count"].equals(table["count"])
    assert residual_figures(masked.select(["count"]), plan)["residual_identifiers"] == 0


_EXAMPLES = (
    "ann@example.com",
    "GB82 WEST 1234 5698 7654 32",
    "4111 1111 1111 1111",
    "123-45-6789",
    "+44 20 7946 0958",
    "(212) 555-0123",
    "192.0.2.1",
    "2001:db8::1",
    "00:1b:44:11:3a:b7",
    "AB123456C",
    "86 095 742 719",
    "12345678Z",
    "X-1234567-L",
    "DE136695976",
    "2 55 08 14 168 025 38",
    "912-70-1234",
    "routing 021000021",
    "ein 12-3456789",
    "passport A12345678",
)


_BY_COLUMN = (
    ("born", "2 5 38\01938-02-05\05/3/2001\0n/a"),
    ("zip", "94105\010001-1234\0SW1A 1AA"),
    ("age", "93\041\07"),
    ("name", "Anna Smith\0Mary Jones\0John Brown\0Peter Hall"),
)


def _seeds() -> list[bytes]:
    alone = [b"\0" + text.encode() for text in _EXAMPLES]
    columns = [bytes([_COLUMNS.index(name)]) + cells.encode() for name, cells in _BY_COLUMN]
    return [*alone, b"\1see " + ", ".join(_EXAMPLES).encode(), b"\2" + "\0".join(_EXAMPLES).encode(), *columns]


_WORDS = (
    *(text.encode() for text in _EXAMPLES),
    *(b"phone: ", b"ssn ", b"tax id ", b" ext. 5", b"call ", b"[.]", b"\xe2\x80\x8b", b"\xc2\xa0", b"\xe2\x80\x93"),
    *(b"\xef\xbc\x91", b"\xd9\xa3", b"<EMAIL:", b">", b"@", b"::", b"\xcc\x81", b"\xf0\x9d\x9f\x8e"),
)

TARGETS = (
    Target("scan", fuzz_scan, _seeds, _WORDS, 512),
    Target("mask", fuzz_mask, _seeds, _WORDS, 512),
    Target("mask-table", fuzz_table, lambda: [seed + b"\n\n" + bytes(range(64)) for seed in _seeds()], _WORDS, 512),
)
