"""Masking a table: every identifier leaves it, or the table is refused.

What becomes of a column is decided from the schema, the plan and the table's head, its first 8,192 rows; what becomes
of a cell from the cell alone. So it makes no difference how a table is cut into pieces.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from portcullis.errors import DataError, PortcullisError
from portcullis.pii.columns import Kind, checked_names, kind, text_of
from portcullis.pii.cutting import Bools
from portcullis.pii.encoded import EncodedFinder
from portcullis.pii.finders import detector_finders, encoded_finder, rule_finders
from portcullis.pii.folding import fold
from portcullis.pii.generalise import generalised_numbers
from portcullis.pii.mask_text import TextMasker
from portcullis.pii.operators import VALUE
from portcullis.pii.plan import MaskingPlan
from portcullis.pii.reading import buffers
from portcullis.pii.replacing import Replacer
from portcullis.pii.scan import Finder, Findings, scan
from portcullis.pii.tally import Tally
from portcullis.pii.tokens import MaskingKeys
from portcullis.pii.treatments import Treatment, check_numbers, held_by_column, masked_type, treatment_of
from portcullis.table import HEAD_ROWS, TableStream, head_of

_NOTHING = np.zeros(0, np.bool_)


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
    tally = Tally(plan.kinds)
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
    _tally: list[Tally] = field(repr=False)

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
    done: list[Tally] = []

    def pieces() -> Iterator[pa.Table]:
        tally = Tally(plan.kinds)
        for piece in table.pieces():
            yield masker.piece(piece, tally)
        done[:] = [tally]

    return MaskedStream(TableStream(masker.schema(table.schema), table.rows, pieces), masker, done)


@dataclass(frozen=True)
class _Masker:
    plan: MaskingPlan
    treatments: Mapping[str, Treatment]
    replacer: Replacer
    text: TextMasker
    rules: Sequence[Finder]
    encoded: EncodedFinder
    detectors: Sequence[Finder]

    @classmethod
    def of(cls, head: Any, plan: MaskingPlan, key: bytes) -> "_Masker":
        """Decide what becomes of each column, or refuse the table."""
        keys = MaskingKeys.derive(key)
        names = checked_names(head)
        if missing := sorted(set(plan.columns) - set(names)):
            raise DataError(f"the plan names columns that the table lacks: {', '.join(map(repr, missing))}")
        rules = rule_finders(plan)
        encoded = encoded_finder(plan, rules)
        finders = (*rules, encoded)
        if len(scan(pa.array(names), plan.entities, finders=finders).values):
            raise DataError("a column's name holds an identifier; is the header missing?")
        held = held_by_column(head, plan)
        treatments = {name: treatment_of(name, head.schema.field(name).type, plan, held.get(name)) for name in names}
        if all(it.operator is not None and it.operator.name == "drop" for it in treatments.values()):
            raise DataError("the plan drops every column; nothing would be left")
        replacer = Replacer(plan, keys)
        text = TextMasker(plan, replacer, finders)
        return cls(plan, treatments, replacer, text, rules, encoded, detector_finders(plan))

    def schema(self, schema: pa.Schema) -> pa.Schema:
        """Return the columns of the masked table."""
        types = {name: masked_type(name, it, schema.field(name).type) for name, it in self.treatments.items()}
        return pa.schema([(name, type_) for name, type_ in types.items() if type_ is not None])

    def report(self, tally: Tally) -> MaskingReport:
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

    def piece(self, piece: Any, tally: Tally) -> Any:
        """Mask some rows of the table, and count."""
        columns: dict[str, Any] = {}
        for name, treatment in self.treatments.items():
            values = piece.column(name)
            operator = treatment.operator
            if operator is None:
                columns[name] = values
                if kind(name, values.type) is Kind.NUMBER:
                    check_numbers(name, values, self.plan)
            elif operator.name == "keep":
                columns[name] = _sound(name, values)
            elif operator.name == "generalise" and kind(name, values.type) is Kind.NUMBER:
                columns[name] = generalised_numbers(operator, values.combine_chunks())
                codes = pc.if_else(values.is_valid(), 0, pa.scalar(None, pa.int64())).combine_chunks()
                tally.add(name, codes, self.replacer.ranks([treatment.entity or VALUE]), np.zeros(1, np.intp))
            elif operator.name != "drop":
                suspects: list[Bools] = []
                finders = (*self.rules, self.encoded.noting(suspects), *self.detectors)
                findings = scan(text_of(values), self.plan.entities, column=name, recall=self._recall, finders=finders)
                if operator.name == "scan":
                    tally.add(name, findings.codes, findings.ranks, findings.values)
                    masked = self.text.masked(name, findings, np.concatenate([_NOTHING, *suspects]))
                else:
                    masked = self._whole_cells(name, treatment, findings, tally)
                masked = _of_rows(masked, findings.codes)
                columns[name] = _cast(name, masked, masked_type(name, treatment, values.type))
        tally.rows += piece.num_rows
        return pa.table(columns)

    @property
    def _recall(self) -> bool:
        return self.plan.detection == "recall"

    def _whole_cells(self, name: str, treatment: Treatment, findings: Findings, tally: Tally) -> pa.LargeStringArray:
        """Return what becomes of each distinct value as a whole, the identifier's own where it is one."""
        operator = treatment.operator
        assert operator is not None  # noqa: S101 - such columns stay
        ranks = _cell_ranks(findings, self.replacer.ranks([operator.entity or treatment.entity or VALUE]))
        tally.add(name, findings.codes, ranks, np.arange(len(ranks)))
        return self.replacer.replacements(findings.distinct, ranks, lambda _: operator)


def _of_rows(masked: pa.LargeStringArray, codes: Any) -> pa.LargeStringArray:
    """Return what became of each row, by the code of its distinct value."""
    alone = len(codes) == len(masked) and not codes.null_count
    return masked if alone and (codes.to_numpy() == np.arange(len(codes))).all() else masked.take(codes)


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


def _sound(name: str, values: Any) -> Any:
    try:
        values.validate(full=True)
    except pa.ArrowInvalid as error:
        raise DataError(f"column {name!r} is malformed; write its text as UTF-8") from error
    return values


def _cast(name: str, masked: Any, type_: Any) -> Any:
    try:
        return masked.cast(type_)
    except pa.ArrowInvalid as error:
        raise DataError(f"column {name!r} exceeds 2 GiB of text once masked; make it large_string") from error
