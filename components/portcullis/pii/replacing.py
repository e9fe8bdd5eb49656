"""What stands in the place of an identifier, by the operator that the plan has for it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from portcullis.pii.canonical import canonical_values
from portcullis.pii.cmac import cmac
from portcullis.pii.entities import Entity
from portcullis.pii.generalise import generalised
from portcullis.pii.operators import Operator
from portcullis.pii.plan import MaskingPlan
from portcullis.pii.synthetic import synthetic
from portcullis.pii.tokens import MaskingKeys, hashed, label, redacted, reversible, tokens


@dataclass(frozen=True)
class Replacer:
    """Replaces texts by rank, as a plan says, under its keys."""

    plan: MaskingPlan
    keys: MaskingKeys

    def of_rank(self, rank: int) -> Operator:
        """Return what becomes of an entity in text."""
        return self.plan.entities[self.plan.kinds[rank]]

    def ranks(self, entities: Sequence[str]) -> npt.NDArray[np.uint8]:
        """Return the ranks of entities, shape (entities,), uint8."""
        return np.array([self.plan.kinds.index(entity) for entity in entities], np.uint8)

    def replacements(
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


def starred(texts: pa.LargeStringArray, keep_last: int) -> pa.LargeStringArray:
    """Return as many stars as each text has characters, but for the last ones where they are at most half of it."""
    lengths = pc.utf8_length(texts)
    kept = pc.if_else(pc.greater_equal(lengths, 2 * keep_last), keep_last, 0)
    stars = pc.binary_repeat(pa.scalar("*", pa.large_string()), pc.subtract(lengths, kept))
    if not keep_last:
        return stars
    ends = pc.if_else(pc.equal(kept, 0), pa.scalar("", pa.large_string()), pc.utf8_slice_codeunits(texts, -keep_last))
    return pc.binary_join_element_wise(stars, ends, pa.scalar("", pa.large_string()))
