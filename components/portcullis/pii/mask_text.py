"""Masking text: something else in the place of each finding, and nothing to be found in what that leaves."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from portcullis.pii.cutting import Bools, inside_of, pieces_of, places_of, rebuilt, starred_in_place
from portcullis.pii.operators import VALUE, Operator
from portcullis.pii.plan import MaskingPlan
from portcullis.pii.reading import Ints, buffers, looked_up
from portcullis.pii.replacing import Replacer
from portcullis.pii.scan import Finder, Findings, scan_values
from portcullis.pii.spelling import masked_spelling
from portcullis.pii.tokens import redacted

# No identifier is without one of these or a character beyond ASCII; what a user's rule finds may be.
_SEED = np.array([chr(code) in "0123456789@:-" or code >= 0x80 for code in range(256)])


@dataclass(frozen=True)
class TextMasker:
    """Masks what was found in text.

    Attributes:
        plan: What to mask.
        replacer: What makes that which stands in its place.
        finders: What finds by form, besides the recognisers, in what is left.
    """

    plan: MaskingPlan
    replacer: Replacer
    finders: Sequence[Finder]

    def masked(self, name: str, findings: Findings, suspects: Bools) -> pa.LargeStringArray:
        """Return each distinct value with something else in the place of each finding.

        Replacing changes what stands beside the rest of a text, so that is scanned again: should it show anything, the
        whole text is replaced. Hence masked text scans clean, whatever it was.

        Args:
            name: The column's name.
            findings: What was found in it.
            suspects: Which distinct values may hold anything encoded.
        """
        if not len(findings.values):
            return self._without_remains(name, findings, findings.distinct, suspects)
        operators = [self.replacer.of_rank(rank) for rank in np.unique(findings.ranks).tolist()]
        alike = operators[0].name == "star" and len(set(operators)) == 1
        offsets, data = buffers(findings.distinct)
        inside = inside_of(*places_of(findings, offsets), len(data))
        masked = starred_in_place(findings, operators[0].keep_last, inside) if alike else None
        if masked is None:
            found = pieces_of(findings).take(pa.array(np.arange(1, 2 * len(findings.values), 2)))
            masked = rebuilt(findings, self.replacer.replacements(found, findings.ranks, self.replacer.of_rank))
        bare, ranks = self._laid_bare(name, findings, inside)
        if len(bare):
            texts = findings.distinct.take(pa.array(bare))
            whole = self.replacer.replacements(texts, ranks, self._of_a_text)
            hits = np.zeros(len(masked), np.bool_)
            hits[bare] = True
            masked = pc.replace_with_mask(masked, pa.array(hits), whole)
        return self._without_remains(name, findings, masked, suspects)

    def _without_remains(
        self, name: str, findings: Findings, masked: pa.LargeStringArray, suspects: Bools
    ) -> pa.LargeStringArray:
        """Return masked values, as a whole where a rule, or decoding, finds something in what masking left.

        A pattern may match what only stands together once an identifier is out, or the characters that `star` keeps;
        an encoded identifier may only then stand apart. The text may have been masked before.
        """
        touched = np.zeros(len(masked), np.bool_)
        touched[findings.values] = True
        if self.plan.rules:
            suspect = touched | pc.match_substring_regex(masked, "[<*]").to_numpy(zero_copy_only=False)
        else:
            suspect = touched & suspects
        which = np.flatnonzero(suspect)
        if not len(which):
            return masked
        left = [self._spelling.sub("|", text) for text in masked.take(pa.array(which)).to_pylist()]
        again = scan_values(pa.array(left, pa.large_string()), (), column=name, finders=self.finders)
        remain, firsts = np.unique(again.values, return_index=True)
        if not len(remain):
            return masked
        hits = np.zeros(len(masked), np.bool_)
        hits[which[remain]] = True
        texts = findings.distinct.filter(pa.array(hits))
        whole = self.replacer.replacements(texts, again.ranks[firsts], self._of_a_text)
        return pc.replace_with_mask(masked, pa.array(hits), whole)

    def _of_a_text(self, rank: int) -> Operator:
        """Return what becomes of a whole text that held one: no part of it stays."""
        operator = self.replacer.of_rank(rank)
        return Operator("redact") if operator.name in ("star", "generalise") else operator

    @cached_property
    def _spelling(self) -> re.Pattern[str]:
        return masked_spelling(self.plan)

    def _laid_bare(self, name: str, findings: Findings, inside: Bools) -> tuple[Ints, npt.NDArray[np.uint8]]:
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
        left = rebuilt(rest, redacted(VALUE, len(rest.values)))
        again = scan_values(left, self.plan.entities, column=name, recall=self.plan.detection == "recall")
        bare, firsts = np.unique(again.values, return_index=True)
        return which[bare], again.ranks[firsts]
