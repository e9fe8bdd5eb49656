"""What is not noised: columns that are kept or dropped, the order of the rows, and how many rows a person has.

Nothing passes silently. A column without noise is kept because the policy says so, or refused.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from portcullis.dataset import DatasetSpec, Treatment
from portcullis.errors import DataError
from portcullis.privacy.settings import DROP, KEEP, ROLES, SHUFFLE, Contribution, NoisePlan
from portcullis.random_bits import RandomBits


def treatments(spec: DatasetSpec, names: Sequence[str], plan: NoisePlan) -> Mapping[str, str]:
    """Return `keep` or `drop` for each of a table's columns without noise, in their order.

    Without a column that gets noise nothing is claimed, and all are kept.

    Raises:
        DataError: A column is not declared, a declared one is missing or gets noise, or the model needs a dropped one.
    """
    left = [name for name in names if name not in plan.columns]
    if not plan.columns:
        return dict.fromkeys(left, KEEP)
    for name in set(plan.others) - set(ROLES):
        if name not in left:
            raise DataError(f"privacy.others names {name!r}, which is no column without noise; correct the policy")
    return {name: _treatment(spec, name, plan.others) for name in left}


def role_of(spec: DatasetSpec, name: str) -> str:
    """Return which of `ROLES` a column has; none is the empty text."""
    if name == spec.label.column:
        return "label"
    if name in spec.features.columns:
        return "features"
    if name in spec.sensitive:
        return "text" if spec.sensitive[name] == "scan" else "ids"
    return ""


def _treatment(spec: DatasetSpec, name: str, others: Mapping[str, str]) -> str:
    role = role_of(spec, name)
    treatment = others.get(name, "") if name not in ROLES else ""
    treatment = treatment or others.get(role, "")
    if not treatment:
        if name in ROLES and not role:
            raise DataError(f"column {name!r} gets no noise, and is called like a role; rename it")
        raise DataError(
            f"column {name!r} gets no noise; declare in privacy.others whether to {KEEP} or {DROP} "
            + (f"{role}, or this column" if role else "it")
        )
    if treatment == DROP and role in ("label", "features"):
        raise DataError(f"column {name!r} cannot be dropped; the model learns from it")
    return treatment


def without(spec: DatasetSpec, dropped: Sequence[str]) -> DatasetSpec:
    """Return a description of a table without the dropped columns."""
    sensitive: dict[str, Treatment] = {
        name: "drop" if name in dropped else treatment for name, treatment in spec.sensitive.items()
    }
    return replace(
        spec,
        sensitive=sensitive,
        synthetic=tuple(name for name in spec.synthetic if name not in dropped),
    )


def chosen_rows(table: pa.Table, plan: NoisePlan, bits: RandomBits) -> NDArray[np.int64] | None:
    """Return the rows that stay, in their new order, (M,) int64; None when nothing changes.

    Which of a person's rows stay depends on chance and on whose rows they are, and on nothing else that is in them.

    Raises:
        DataError: The column that says whose row it is is missing, of another type, or empty somewhere.
    """
    if plan.contribution is None and plan.rows != SHUFFLE:
        return None
    rows = permutation(table.num_rows, bits)
    if plan.contribution:
        rows = _bounded(_persons(table, plan.contribution), rows, plan.contribution.at_most)
    return rows if plan.rows == SHUFFLE else np.sort(rows)


def permutation(count: int, bits: RandomBits) -> NDArray[np.int64]:
    """Return a uniformly random permutation, (count,) int64: the order of random words, drawn anew if two are equal."""
    while True:
        words = bits.words(count)
        order: NDArray[np.int64] = np.argsort(words, kind="stable")
        words = words[order]
        if not (words[1:] == words[:-1]).any():
            return order


def _persons(table: pa.Table, contribution: Contribution) -> NDArray[np.int64]:
    name = contribution.column
    if table.column_names.count(name) != 1:
        raise DataError(f"the data has no column {name!r} that could say whose row it is")
    cells = table.column(name)
    if cells.type not in (pa.string(), pa.int64()):
        raise DataError(f"column {name!r} is {cells.type}; text or integers can say whose row it is")
    if cells.null_count:
        raise DataError(f"column {name!r} has {cells.null_count} empty cells; nobody's row cannot be counted")
    codes: NDArray[np.int64] = cells.combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)
    return codes


def _bounded(persons: NDArray[np.int64], order: NDArray[np.int64], at_most: int) -> NDArray[np.int64]:
    """Return the rows of an order without those that are a person's (at_most + 1)-th or later in it."""
    grouped = np.argsort(persons[order], kind="stable")
    sorted_persons = persons[order][grouped]
    first = np.flatnonzero(np.diff(sorted_persons, prepend=-1))
    sizes = np.diff(first, append=len(order))
    place = np.arange(len(order)) - np.repeat(first, sizes)
    stays = np.empty(len(order), dtype=bool)
    stays[grouped] = place < at_most
    return order[stays]
