"""Masking a table: every identifier leaves it, or the table is refused."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from portcullis.errors import DataError
from portcullis.pii.columns import Kind, checked_names, kind, long_numbers, text_of
from portcullis.pii.entities import Entity, canonical, valid_card
from portcullis.pii.folding import fold
from portcullis.pii.plan import MaskingPlan
from portcullis.pii.reading import buffers
from portcullis.pii.scan import ENTITIES, Findings, Span, named_identifier, rows_of, scan, scan_values
from portcullis.pii.tokens import VALUE, require_key, token


@dataclass(frozen=True)
class MaskingReport:
    """What was done, in counts; never a value.

    Attributes:
        rows: The table's rows.
        actions: What happened to each column: `token`, `drop`, `scan`, or `keep` (numbers, dates, booleans).
        counts: By column that was scanned or tokenised, how many of each entity were replaced. Tokenised cells that
            hold no known identifier count as VALUE.
    """

    rows: int
    actions: Mapping[str, str]
    counts: Mapping[str, Mapping[str, int]]


def mask_table(table: Any, plan: MaskingPlan, *, key: bytes) -> tuple[Any, MaskingReport]:
    """Return the table without the identifiers that the plan looks for, and a report.

    Nulls stay null. Schema and field metadata are left behind: they may quote values. One identifier has one token
    under one key, across columns, tables and runs.

    Args:
        table: A pyarrow Table with at least one row.
        plan: What to mask.
        key: 32 secret bytes; whoever has them can link guesses to tokens.

    Raises:
        KeyMaterialError: The key is not 32 bytes.
        DataError: The table is empty or lacks a column that the plan names; a column has a type that cannot be scanned;
            a column's name is an identifier; or numbers that the plan does not name hold identifiers.
    """
    require_key(key)
    actions = _resolve(table, plan)
    columns: dict[str, Any] = {}
    counts: dict[str, Mapping[str, int]] = {}
    for name, action in actions.items():
        values = table.column(name)
        if action == "keep":
            columns[name] = values
        elif action != "drop":
            findings = scan(text_of(values), plan.entities, column=name, recall=plan.detection == "recall")
            if action == "token":
                masked, found = _tokenise(findings, key)
            else:
                masked, found = _replace(findings, plan, name, key)
            columns[name] = _like(values.type, masked, name)
            counts[name] = dict(sorted(found.items()))
    if not columns:
        raise DataError("the plan drops every column; nothing would be left")
    return pa.table(columns), MaskingReport(table.num_rows, actions, counts)


def _resolve(table: Any, plan: MaskingPlan) -> dict[str, str]:
    """Return the action for every column, or refuse the table."""
    names = checked_names(table)
    if missing := sorted(set(plan.columns) - set(names)):
        raise DataError(f"the plan names columns that the table lacks: {', '.join(map(repr, missing))}")
    if len(scan(pa.array(names), plan.entities).values):
        raise DataError("a column's name holds an identifier; is the header missing?")
    return {name: _action(name, table.column(name), plan) for name in names}


def _action(name: str, values: Any, plan: MaskingPlan) -> str:
    declared = plan.columns.get(name)
    if declared == "drop":
        return declared
    match kind(name, values.type):
        case Kind.TEXT:
            return declared or "scan"
        case _ if declared == "scan":
            raise DataError(f"column {name!r} has type {values.type}; only text can be scanned: token or drop it")
        case Kind.NUMBER if declared is None:
            _check_numbers(name, values, plan.entities)
    return declared or "keep"


def _check_numbers(name: str, values: Any, entities: tuple[Entity, ...]) -> None:
    numbers = long_numbers(values)
    if Entity.CREDIT_CARD in entities and any(map(valid_card, numbers)):
        raise DataError(f"column {name!r} holds numbers that are valid card numbers; declare it token or drop")
    if numbers and named_identifier(name, entities):
        raise DataError(f"column {name!r} holds numbers that its name calls identifiers; declare it token or drop")


def _replace(findings: Findings, plan: MaskingPlan, name: str, key: bytes) -> tuple[Any, Counter[str]]:
    """Put a token in the place of each finding.

    Replacing changes what stands beside the rest of a text, so the result is scanned again: should that show anything,
    the whole text becomes one token. Hence masked text scans clean, whatever it was.
    """
    distinct = _with_tokens(findings, key)
    touched = np.unique(findings.values)
    left = distinct.take(pa.array(touched))
    again = scan_values(left, plan.entities, column=name, recall=plan.detection == "recall")
    bare, firsts = np.unique(again.values, return_index=True)
    if len(bare):
        texts = findings.distinct.take(pa.array(touched[bare])).to_pylist()
        kinds = [ENTITIES[rank] for rank in again.ranks[firsts].tolist()]
        whole = [token(key, entity, canonical(entity, text)) for entity, text in zip(kinds, texts, strict=True)]
        hits = np.zeros(len(distinct), bool)
        hits[touched[bare]] = True
        distinct = pc.replace_with_mask(distinct, pa.array(hits), pa.array(whole, pa.large_string()))
    return distinct.take(findings.codes), Counter({str(entity): n for entity, n in findings.counts().items()})


def _with_tokens(findings: Findings, key: bytes) -> Any:
    """Return the distinct values with a token in the place of each finding, a large_string array."""
    offsets, data = buffers(findings.distinct)
    starts = offsets[findings.values] + findings.starts
    ends = offsets[findings.values] + findings.ends
    text = data.tobytes()
    pieces: list[bytes] = []
    lengths = np.zeros(len(starts), np.int64)
    position = 0
    found = zip(starts.tolist(), ends.tolist(), findings.ranks.tolist(), strict=True)
    for index, (start, end, rank) in enumerate(found):
        entity = ENTITIES[rank]
        made = token(key, entity, canonical(entity, text[start:end].decode())).encode()
        pieces += [text[position:start], made]
        lengths[index] = len(made)
        position = end
    pieces.append(text[position:])
    growth = np.append(0, np.cumsum(lengths - (ends - starts)))
    shifted = offsets + growth[np.searchsorted(findings.values, np.arange(len(offsets)))]
    return pa.LargeStringArray.from_buffers(len(offsets) - 1, pa.py_buffer(shifted), pa.py_buffer(b"".join(pieces)))


def _tokenise(findings: Findings, key: bytes) -> tuple[Any, Counter[str]]:
    """Put one token in the place of each cell, the identifier's own where the cell is an identifier."""
    texts = findings.distinct.to_pylist()
    entities: list[str] = []
    tokens: list[str] = []
    for index, text in enumerate(texts):
        spans = findings.spans.get(index, ())
        whole = len(spans) == 1 and _is_all_of(text, spans[0])
        entities.append(spans[0].entity if whole else VALUE)
        tokens.append(token(key, entities[-1], canonical(spans[0].entity, text) if whole else text))
    counts: Counter[str] = Counter()
    for entity, rows in zip(entities, rows_of(findings.codes, len(texts)), strict=True):
        counts[str(entity)] += int(rows)
    return pa.array(tokens, pa.large_string()).take(findings.codes), counts


def _is_all_of(text: str, span: Span) -> bool:
    """Tell whether nothing that is seen stands beside the span, which is in bytes."""
    written = text.encode()
    return not fold((written[: span.start] + written[span.end :]).decode()).strip()


def _like(type_: Any, masked: Any, name: str) -> Any:
    """Return masked text in the column's own string type; large_string where it was no text."""
    if not pa.types.is_string(type_):
        return masked
    try:
        return masked.cast(type_)
    except pa.ArrowInvalid as error:
        raise DataError(f"column {name!r} exceeds 2 GiB of text once masked; make it large_string") from error
