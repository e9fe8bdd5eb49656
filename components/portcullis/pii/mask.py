"""Masking a table: every identifier leaves it, or the table is refused.

What becomes of a column is decided from the schema, the plan and the table's head, its first 8,192 rows; what becomes
of a cell from the cell alone. So it makes no difference how a table is cut into pieces.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from portcullis.errors import DataError, PortcullisError
from portcullis.pii.canonical import canonical_values
from portcullis.pii.cmac import cmac
from portcullis.pii.columns import Kind, checked_names, kind, long_numbers, text_of
from portcullis.pii.encoded import may_be_encoded
from portcullis.pii.entities import BY_COLUMN, Entity, valid_card
from portcullis.pii.finders import detector_finders, text_finders
from portcullis.pii.folding import fold
from portcullis.pii.generalise import generalised, generalised_numbers
from portcullis.pii.operators import VALUE, Operator
from portcullis.pii.plan import MaskingPlan
from portcullis.pii.profile import profile
from portcullis.pii.reading import Ints, buffers, looked_up
from portcullis.pii.rules import named_by
from portcullis.pii.scan import Finder, Findings, named_identifier, rows_of, scan, scan_values
from portcullis.pii.spelling import masked_spelling
from portcullis.pii.synthetic import synthetic
from portcullis.pii.tokens import MaskingKeys, hashed, label, redacted, reversible, tokens
from portcullis.table import HEAD_ROWS, TableStream, head_of

# How many rows are named to show where something was found.
MOST_POSITIONS = 5
_KEEP, _SCAN = "keep", Operator("scan")
_Bools = npt.NDArray[np.bool_]
_STAR = ord("*")
# No identifier is without one of these or a character beyond ASCII; what a user's rule finds may be.
_SEED = np.array([chr(code) in "0123456789@:-" or code >= 0x80 for code in range(256)])


@dataclass(frozen=True)
class MaskingReport:
    """What was done, in counts; never a value.

    Attributes:
        rows: The table's rows.
        actions: What happened to each column: the operator as a plan spells it, `scan`, or `keep` (numbers, dates,
            booleans that are not named).
        counts: By column, how many of each entity were replaced. Replaced cells that hold no known identifier count as
            VALUE.
        positions: By column and entity, the first rows that held one, at most five; the first row is 1.
        operators: By entity that was found in text, what became of it.
        profiled: The columns that were treated for what their head holds, and which entity that is.
    """

    rows: int
    actions: Mapping[str, Any]
    counts: Mapping[str, Mapping[str, int]]
    positions: Mapping[str, Mapping[str, tuple[int, ...]]]
    operators: Mapping[str, Any]
    profiled: Mapping[str, str]


@dataclass(frozen=True)
class _Treatment:
    """What becomes of a column.

    Attributes:
        operator: None: it stays, but for numbers that are looked at for identifiers.
        entity: What its cells hold by its profile.
    """

    operator: Operator | None
    entity: Entity | None = None

    @property
    def action(self) -> Any:
        return self.operator.spelled() if self.operator else _KEEP


@dataclass
class _Tally:
    """What was found in one reading of a table; `kinds` are its plan's."""

    kinds: tuple[str, ...]
    rows: int = 0
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    positions: dict[str, dict[str, tuple[int, ...]]] = field(default_factory=dict)

    def add(self, column: str, codes: Any, ranks: npt.NDArray[np.uint8], values: Ints) -> None:
        """Count what was found in values, by its rank, once for each row whose code is that value."""
        counts = self.counts.setdefault(column, Counter())
        positions = self.positions.setdefault(column, {})
        if not len(values):
            return
        rows = rows_of(codes, int(values.max()) + 1)[values]
        totals = np.bincount(ranks, weights=rows).astype(np.int64)
        of_row = codes.fill_null(-1).to_numpy()
        hits = np.zeros(max(int(of_row.max()), int(values.max())) + 2, np.bool_)  # the last is that of a null
        for rank in np.flatnonzero(totals).tolist():
            entity = str(self.kinds[rank])
            counts[entity] += int(totals[rank])
            known = positions.get(entity, ())
            if len(known) < MOST_POSITIONS:
                hits[:] = False
                hits[values[ranks == rank]] = True
                found = np.flatnonzero(hits[of_row])[: MOST_POSITIONS - len(known)]
                positions[entity] = (*known, *(self.rows + found + 1).tolist())


def mask_table(table: Any, plan: MaskingPlan, *, key: bytes) -> tuple[Any, MaskingReport]:
    """Return the table without the identifiers that the plan looks for, and a report.

    Nulls stay null. Schema and field metadata are left behind: they may quote values. One identifier has one token
    under one key, across columns, tables and runs.

    Args:
        table: A pyarrow Table with at least one row.
        plan: What to mask.
        key: The masking key, 32 secret bytes; whoever has them can link guesses to tokens.

    Raises:
        KeyMaterialError: The key is not 32 bytes.
        DataError: The table is empty or lacks a column that the plan names; a column has a type that cannot be scanned,
            or that the plan's operator cannot work on; a column's name is an identifier; or numbers that the plan does
            not name hold identifiers.
    """
    masker = _Masker.of(table.slice(0, HEAD_ROWS), plan, key)
    tally = _Tally(plan.kinds)
    masked = masker.piece(table, tally)
    return masked, masker.report(tally)


@dataclass
class MaskedStream:
    """A masked table that is read in pieces.

    Attributes:
        table: Its rows; each reading masks them anew.
    """

    table: TableStream
    _masker: "_Masker" = field(repr=False)
    _tally: list[_Tally] = field(repr=False)

    def report(self) -> MaskingReport:
        """Return what was done; once every piece was read."""
        if not self._tally:
            raise PortcullisError("the masked table was not read to its end; there is nothing to report yet")
        return self._masker.report(self._tally[-1])


def mask_stream(table: TableStream, plan: MaskingPlan, *, key: bytes, head: TableStream | None = None) -> MaskedStream:
    """Return the table, masked as it is read; the same rows as `mask_table` gives, however it is cut.

    Args:
        table: As for `mask_table`; so are the others. Its head is read at once.
        plan: What to mask.
        key: The masking key.
        head: The first rows of the whole, where `table` is a part of it; its own where None.

    Raises:
        KeyMaterialError: As `mask_table`; so are the others, while the pieces are read.
        DataError: As `mask_table`.
    """
    head = table if head is None else head
    if head.schema != table.schema:
        raise DataError("the head has other columns than the table; it is that of another one")
    masker = _Masker.of(head_of(head), plan, key)
    done: list[_Tally] = []

    def pieces() -> Iterator[pa.Table]:
        tally = _Tally(plan.kinds)
        for piece in table.pieces():
            yield masker.piece(piece, tally)
        done[:] = [tally]

    return MaskedStream(TableStream(masker.schema(table.schema), table.rows, pieces), masker, done)


@dataclass(frozen=True)
class _Masker:
    plan: MaskingPlan
    keys: MaskingKeys
    treatments: Mapping[str, _Treatment]
    text_finders: Sequence[Finder]
    detectors: Sequence[Finder]

    @classmethod
    def of(cls, head: Any, plan: MaskingPlan, key: bytes) -> "_Masker":
        """Decide what becomes of each column, or refuse the table."""
        keys = MaskingKeys.derive(key)
        names = checked_names(head)
        if missing := sorted(set(plan.columns) - set(names)):
            raise DataError(f"the plan names columns that the table lacks: {', '.join(map(repr, missing))}")
        finders = text_finders(plan)
        if len(scan(pa.array(names), plan.entities, finders=finders).values):
            raise DataError("a column's name holds an identifier; is the header missing?")
        held = _held(head, plan)
        treatments = {name: _treatment(name, head.schema.field(name).type, plan, held.get(name)) for name in names}
        if all(it.operator is not None and it.operator.name == "drop" for it in treatments.values()):
            raise DataError("the plan drops every column; nothing would be left")
        return cls(plan, keys, treatments, finders, detector_finders(plan))

    def schema(self, schema: pa.Schema) -> pa.Schema:
        """Return the columns of the masked table."""
        types = {name: _masked_type(name, it, schema.field(name).type) for name, it in self.treatments.items()}
        return pa.schema([(name, type_) for name, type_ in types.items() if type_ is not None])

    def report(self, tally: _Tally) -> MaskingReport:
        """Return what was done in one reading."""
        found = {entity for counts in tally.counts.values() for entity in counts}
        return MaskingReport(
            tally.rows,
            {name: it.action for name, it in self.treatments.items()},
            {name: dict(sorted(counts.items())) for name, counts in tally.counts.items()},
            {name: dict(sorted(rows.items())) for name, rows in tally.positions.items()},
            {str(entity): operator.spelled() for entity, operator in self.plan.entities.items() if entity in found},
            {name: it.entity.value for name, it in self.treatments.items() if it.entity is not None},
        )

    def piece(self, piece: Any, tally: _Tally) -> Any:
        """Mask some rows of the table, and count."""
        columns: dict[str, Any] = {}
        finders = (*self.text_finders, *self.detectors)
        for name, treatment in self.treatments.items():
            values = piece.column(name)
            operator = treatment.operator
            if operator is None:
                columns[name] = values
                if kind(name, values.type) is Kind.NUMBER:
                    _check_numbers(name, values, self.plan)
            elif operator.name == "keep":
                columns[name] = _sound(name, values)
            elif operator.name == "generalise" and kind(name, values.type) is Kind.NUMBER:
                columns[name] = generalised_numbers(operator, values.combine_chunks())
                codes = pc.if_else(values.is_valid(), 0, pa.scalar(None, pa.int64())).combine_chunks()
                tally.add(name, codes, self._ranks([treatment.entity or VALUE]), np.zeros(1, np.intp))
            elif operator.name != "drop":
                findings = scan(text_of(values), self.plan.entities, column=name, recall=self._recall, finders=finders)
                mask = self._in_text if operator.name == "scan" else self._whole_cells
                masked = _of_rows(mask(name, treatment, findings, tally), findings.codes)
                columns[name] = _cast(name, masked, _masked_type(name, treatment, values.type))
        tally.rows += piece.num_rows
        return pa.table(columns)

    @property
    def _recall(self) -> bool:
        return self.plan.detection == "recall"

    def _whole_cells(self, name: str, treatment: _Treatment, findings: Findings, tally: _Tally) -> pa.LargeStringArray:
        """Return what becomes of each distinct value as a whole, the identifier's own where it is one."""
        operator = treatment.operator
        assert operator is not None  # noqa: S101 - such columns stay
        ranks = _cell_ranks(findings, self._ranks([operator.entity or treatment.entity or VALUE]))
        tally.add(name, findings.codes, ranks, np.arange(len(ranks)))
        return self._replacements(findings.distinct, ranks, lambda _: operator)

    def _in_text(self, name: str, _: _Treatment, findings: Findings, tally: _Tally) -> pa.LargeStringArray:
        """Return each distinct value with something else in the place of each finding.

        Replacing changes what stands beside the rest of a text, so that is scanned again: should it show anything, the
        whole text is replaced. Hence masked text scans clean, whatever it was.
        """
        tally.add(name, findings.codes, findings.ranks, findings.values)
        if not len(findings.values):
            return self._without_remains(name, findings, findings.distinct)
        operators = [self._of_rank(rank) for rank in np.unique(findings.ranks).tolist()]
        alike = operators[0].name == "star" and len(set(operators)) == 1
        offsets, data = buffers(findings.distinct)
        inside = _inside(*_places(findings, offsets), len(data))
        masked = _starred_in_place(findings, operators[0].keep_last, inside) if alike else None
        if masked is None:
            found = _pieces(findings).take(pa.array(np.arange(1, 2 * len(findings.values), 2)))
            masked = _rebuilt(findings, self._replacements(found, findings.ranks, self._of_rank))
        bare, ranks = self._laid_bare(name, findings, inside)
        if len(bare):
            texts = findings.distinct.take(pa.array(bare))
            whole = self._replacements(texts, ranks, lambda rank: _of_a_text(self._of_rank(rank)))
            hits = np.zeros(len(masked), np.bool_)
            hits[bare] = True
            masked = pc.replace_with_mask(masked, pa.array(hits), whole)
        return self._without_remains(name, findings, masked)

    def _without_remains(self, name: str, findings: Findings, masked: pa.LargeStringArray) -> pa.LargeStringArray:
        """Return masked values, as a whole where a rule, or decoding, finds something in what masking left.

        A pattern may match what only stands together once an identifier is out, or the characters that `star` keeps;
        an encoded identifier may only then stand apart. The text may have been masked before.
        """
        touched = np.zeros(len(masked), np.bool_)
        touched[findings.values] = True
        if self.plan.rules:
            suspect = touched | pc.match_substring_regex(masked, "[<*]").to_numpy(zero_copy_only=False)
        else:
            suspect = touched & may_be_encoded(findings.distinct)
        which = np.flatnonzero(suspect)
        if not len(which):
            return masked
        left = [self._spelling.sub("|", text) for text in masked.take(pa.array(which)).to_pylist()]
        again = scan_values(pa.array(left, pa.large_string()), (), column=name, finders=self.text_finders)
        remain, firsts = np.unique(again.values, return_index=True)
        if not len(remain):
            return masked
        hits = np.zeros(len(masked), np.bool_)
        hits[which[remain]] = True
        texts = findings.distinct.filter(pa.array(hits))
        whole = self._replacements(texts, again.ranks[firsts], lambda rank: _of_a_text(self._of_rank(rank)))
        return pc.replace_with_mask(masked, pa.array(hits), whole)

    @cached_property
    def _spelling(self) -> re.Pattern[str]:
        return masked_spelling(self.plan)

    def _laid_bare(self, name: str, findings: Findings, inside: _Bools) -> tuple[Ints, npt.NDArray[np.uint8]]:
        """Return the distinct values that hold more once the findings are out of them, and the first of it.

        `inside` tells of each byte of the distinct values whether it lies in a finding.
        """
        offsets, data = buffers(findings.distinct)
        seeds = looked_up(_SEED, data) > inside
        suspect = np.zeros(len(findings.distinct), np.bool_)
        suspect[np.searchsorted(offsets, np.flatnonzero(seeds), "right") - 1] = True
        touched = np.zeros(len(findings.distinct), np.bool_)
        touched[findings.values] = True
        which = np.flatnonzero(suspect & touched)
        if not len(which):
            return which, np.zeros(0, np.uint8)
        there = suspect[findings.values]
        place = np.cumsum(suspect & touched) - 1
        rest = Findings(
            findings.distinct.take(pa.array(which)),
            None,
            place[findings.values[there]],
            findings.starts[there],
            findings.ends[there],
            findings.ranks[there],
        )
        left = _rebuilt(rest, redacted(VALUE, len(rest.values)))
        again = scan_values(left, self.plan.entities, column=name, recall=self._recall)
        bare, firsts = np.unique(again.values, return_index=True)
        return which[bare], again.ranks[firsts]

    def _of_rank(self, rank: int) -> Operator:
        return self.plan.entities[self.plan.kinds[rank]]

    def _ranks(self, entities: Sequence[str]) -> npt.NDArray[np.uint8]:
        return np.array([self.plan.kinds.index(entity) for entity in entities], np.uint8)

    def _replacements(
        self, texts: pa.LargeStringArray, ranks: npt.NDArray[np.uint8], operator_of: Callable[[int], Operator]
    ) -> pa.LargeStringArray:
        """Return what each text becomes, by the rank of its entity."""
        groups, parts = [], []
        for rank in np.unique(ranks).tolist():
            which = np.flatnonzero(ranks == rank)
            group = texts if len(which) == len(texts) else texts.take(pa.array(which))
            groups.append(which)
            parts.append(self._replaced(operator_of(rank), str(self.plan.kinds[rank]), group))
        if len(parts) < 2:
            return parts[0] if parts else texts
        return pa.concat_arrays(parts).take(pa.array(np.argsort(np.concatenate(groups))))

    def _replaced(self, operator: Operator, entity: str, texts: pa.LargeStringArray) -> pa.LargeStringArray:
        match operator.name:
            case "token":
                return tokens(self.keys, entity, canonical_values(entity, texts))
            case "hash":
                return hashed(self.keys, entity, canonical_values(entity, texts))
            case "reversible":
                return reversible(self.keys, entity, texts)
            case "star":
                return starred(texts, operator.keep_last)
            case "generalise":
                return generalised(operator, texts, unreadable=f"<{entity}>")
            case "synthetic" if operator.entity is not None:
                kind_ = Entity(operator.entity)
                codes = cmac(self.keys.synthetic, label(kind_), canonical_values(kind_, texts))
                return synthetic(kind_, codes, texts)
        return redacted(entity, len(texts))


def _of_rows(masked: pa.LargeStringArray, codes: Any) -> pa.LargeStringArray:
    """Return what became of each row, by the code of its distinct value."""
    alone = len(codes) == len(masked) and not codes.null_count
    return masked if alone and (codes.to_numpy() == np.arange(len(codes))).all() else masked.take(codes)


def starred(texts: pa.LargeStringArray, keep_last: int) -> pa.LargeStringArray:
    """Return as many stars as each text has characters, but for the last ones where they are at most half of it."""
    lengths = pc.utf8_length(texts)
    kept = pc.if_else(pc.greater_equal(lengths, 2 * keep_last), keep_last, 0)
    stars = pc.binary_repeat(pa.scalar("*", pa.large_string()), pc.subtract(lengths, kept))
    if not keep_last:
        return stars
    ends = pc.if_else(pc.equal(kept, 0), pa.scalar("", pa.large_string()), pc.utf8_slice_codeunits(texts, -keep_last))
    return pc.binary_join_element_wise(stars, ends, pa.scalar("", pa.large_string()))


def _starred_in_place(findings: Findings, keep_last: int, inside: _Bools) -> pa.LargeStringArray | None:
    """Return the values with stars over the findings, all `inside`; None where one has characters of several bytes."""
    offsets, data = buffers(findings.distinct)
    if ((data >= 0x80) & inside).any():
        return None
    if keep_last:
        starts, ends = _places(findings, offsets)
        kept = np.where(ends - starts >= 2 * keep_last, keep_last, 0)
        inside = _inside(starts, ends - kept, len(data))
    text = np.where(inside, np.uint8(_STAR), data)
    return pa.LargeStringArray.from_buffers(len(offsets) - 1, _buffer(offsets), pa.py_buffer(text))


def _places(findings: Findings, offsets: Ints) -> tuple[Ints, Ints]:
    """Return where each finding starts and ends in the bytes of all values."""
    return offsets[findings.values] + findings.starts, offsets[findings.values] + findings.ends


def _inside(starts: Ints, ends: Ints, size: int) -> _Bools:
    """Return for each of `size` bytes whether it lies in a finding."""
    bounds = _bounds(starts, ends, size)
    return np.repeat(np.arange(len(bounds) - 1) % 2 == 1, np.diff(bounds))


def _bounds(starts: Ints, ends: Ints, size: int) -> Ints:
    """Return the ends of all pieces that text is cut into: what is between findings, and each finding."""
    bounds = np.zeros(2 * len(starts) + 2, np.int64)
    bounds[1:-1:2] = starts
    bounds[2:-1:2] = ends
    bounds[-1] = size
    return bounds


def _pieces(findings: Findings) -> pa.LargeStringArray:
    """Return the bytes of all values, cut before and after each finding; every other piece is one."""
    offsets, data = buffers(findings.distinct)
    bounds = _bounds(*_places(findings, offsets), len(data))
    return pa.LargeStringArray.from_buffers(len(bounds) - 1, _buffer(bounds), pa.py_buffer(data))


def _rebuilt(findings: Findings, made: pa.LargeStringArray) -> pa.LargeStringArray:
    """Return the values with what was made in the place of each finding."""
    pieces = _pieces(findings)
    finding = np.arange(len(pieces)) % 2 == 1
    _, text = buffers(pc.replace_with_mask(pieces, pa.array(finding), made))
    offsets, _ = buffers(findings.distinct)
    growth = np.append(0, np.cumsum(np.diff(buffers(made)[0]) - (findings.ends - findings.starts)))
    shifted = offsets + growth[np.searchsorted(findings.values, np.arange(len(offsets)))]
    return pa.LargeStringArray.from_buffers(len(offsets) - 1, _buffer(shifted), pa.py_buffer(text))


def _buffer(offsets: Ints) -> pa.Buffer:
    return pa.py_buffer(np.ascontiguousarray(offsets, np.int64))


def _of_a_text(operator: Operator) -> Operator:
    """Return what becomes of a whole text that held one: no part of it stays."""
    return Operator("redact") if operator.name in ("star", "generalise") else operator


def _cell_ranks(findings: Findings, otherwise: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return the rank of each distinct value: an identifier's where it is all of one, else what cells are otherwise."""
    offsets, _ = buffers(findings.distinct)
    lengths = np.diff(offsets)
    ranks = np.repeat(otherwise, len(lengths))
    alone = np.bincount(findings.values, minlength=len(lengths))[findings.values] == 1
    exact = alone & (findings.starts == 0) & (findings.ends == lengths[findings.values])
    ranks[findings.values[exact]] = findings.ranks[exact]
    for index in np.flatnonzero(alone & ~exact).tolist():
        value = int(findings.values[index])
        written = findings.distinct[value].as_py().encode()
        beside = written[: findings.starts[index]] + written[findings.ends[index] :]
        if not fold(beside.decode()).strip():
            ranks[value] = findings.ranks[index]
    return ranks


def _held(head: Any, plan: MaskingPlan) -> dict[str, Entity]:
    """Return what entity each column that the plan does not name holds as a whole, of those that no text shows."""
    if not BY_COLUMN.intersection(plan.entities):
        return {}
    dropped = [name for name, operator in plan.columns.items() if operator.name == "drop"]
    profiles = profile(head.drop_columns(dropped), [Entity(it) for it in plan.entities if it not in plan.own])
    held = {name: it.entity for name, it in profiles.items() if name not in plan.columns}
    return {name: entity for name, entity in held.items() if entity in BY_COLUMN}


def _treatment(name: str, type_: Any, plan: MaskingPlan, held: Entity | None) -> _Treatment:
    operator = plan.columns.get(name)
    if operator is not None and operator.name == "drop":
        return _Treatment(operator)
    kind_ = kind(name, type_)
    if operator is None and held is not None:
        operator = plan.entities[held]
    if operator is None:
        return _Treatment(_SCAN if kind_ is Kind.TEXT else None)
    if operator.name == "scan" and kind_ is not Kind.TEXT:
        raise DataError(f"column {name!r} has type {type_}; only text can be scanned: token or drop it")
    if operator.form in ("zip3", "network") and kind_ is not Kind.TEXT:
        raise DataError(
            f"column {name!r} has type {type_}, in which leading zeros are lost; list it in dataset.sensitive, so that "
            "it is read as text"
        )
    return _Treatment(operator, held)


def _masked_type(name: str, treatment: _Treatment, type_: Any) -> Any:
    """Return the type of a masked column: its own where it stays text or numbers, else string; None if it is gone."""
    operator = treatment.operator
    if operator is None or operator.name in ("keep", "scan"):
        return type_
    if operator.name == "drop":
        return None
    kind_ = kind(name, type_)
    stays = kind_ is Kind.TEXT or (operator.name == "generalise" and kind_ is Kind.NUMBER)
    return type_ if stays else pa.string()


def _sound(name: str, values: Any) -> Any:
    try:
        values.validate(full=True)
    except pa.ArrowInvalid as error:
        raise DataError(f"column {name!r} is malformed; write its text as UTF-8") from error
    return values


def _check_numbers(name: str, values: Any, plan: MaskingPlan) -> None:
    numbers = long_numbers(values)
    if Entity.CREDIT_CARD in plan.entities and any(map(valid_card, numbers)):
        raise DataError(f"column {name!r} holds numbers that are valid card numbers; declare it token or drop")
    if named := [rule for rule in plan.rules.values() if named_by(rule, name)]:
        texts = pc.unique(text_of(values)).drop_null()
        if any(pc.any(pc.match_substring_regex(texts, rule.pattern)).as_py() for rule in named):
            raise DataError(f"column {name!r} holds numbers that a rule of the plan finds; declare it token or drop")
    if numbers and named_identifier(name, plan.entities):
        raise DataError(f"column {name!r} holds numbers that its name calls identifiers; declare it token or drop")


def _cast(name: str, masked: Any, type_: Any) -> Any:
    try:
        return masked.cast(type_)
    except pa.ArrowInvalid as error:
        raise DataError(f"column {name!r} exceeds 2 GiB of text once masked; make it large_string") from error
