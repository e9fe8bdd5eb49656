"""Where the user's rules find something: exact bytes, in text as it is written, folded, without accents, and unbroken.

Arrow's RE2 tells at once which values hold a match; only those are read one by one.
"""

import unicodedata
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from portcullis.pii.folding import fold
from portcullis.pii.reading import Ints
from portcullis.pii.rules import Rule, context_pattern, named_by
from portcullis.pii.scan import Found, found_of

_ODD = r"[^ -~]"


class RuleFinder:
    """Finds what rules find; see `portcullis.pii.scan.Finder`.

    Args:
        rules: Each rule and the rank of its findings.
    """

    def __init__(self, rules: Mapping[Rule, int]) -> None:
        self._rules = rules

    def __call__(self, values: Any, column: str) -> Found:
        """Return what the rules find in a large_string array without nulls, in a column of this name."""
        readings = list(_readings(values))
        rows = []
        for rule, rank in self._rules.items():
            spoken = np.ones(len(values), np.bool_)
            if rule.context and not named_by(rule, column):
                words = context_pattern(rule.context)
                spoken = _matching(values, words).copy()
                for odd, folded, _ in readings:
                    spoken[odd] |= _matching(folded, words)
            for value in np.flatnonzero(_matching(values, rule.pattern) & spoken).tolist():
                text = values[value].as_py().encode()
                rows += [(value, start, end, rank) for start, end in matches(rule, text)]
            for odd, folded, fold_one in readings:
                for index in np.flatnonzero(_matching(folded, rule.pattern) & spoken[odd]).tolist():
                    value = int(odd[index])
                    begins, ends = _places(values[value].as_py(), fold_one)
                    text = folded[index].as_py().encode()
                    rows += [(value, begins[start], ends[end - 1], rank) for start, end in matches(rule, text)]
        return found_of(rows)


def matches(rule: Rule, text: bytes) -> Iterator[tuple[int, int]]:
    """Yield the start and end of each match that the validator accepts, without overlaps.

    A match that it does not accept is tried again from its next byte, so there are as many searches as bytes at most,
    and each reads no further than the longest match after it began one.
    """
    position = 0
    while match := rule.program.search(text, position):
        start, end = match.span()
        position = start + 1
        # Only a match in whole characters is one: RE2 may begin at none of a character's other bytes.
        if rule.valid(text[start:end].decode()):
            position = end
            yield start, end


def _readings(values: Any) -> Iterator[tuple[Ints, Any, Callable[[str], str]]]:
    """Yield how values that are not printable ASCII may be read: which they are, their texts, and one character's."""
    odd = np.flatnonzero(pc.match_substring_regex(values, _ODD))
    texts = values.take(pa.array(odd)).to_pylist()
    for fold_one in (fold, _bare, _unbroken):
        yield odd, pa.array(["".join(map(fold_one, text)) for text in texts], pa.large_string()), fold_one


@lru_cache(1 << 12)
def _bare(character: str) -> str:
    """Return a character, folded, without the accent that is part of it."""
    return fold(unicodedata.normalize("NFKD", character))


def _unbroken(character: str) -> str:
    """Return a character without its accent; of a line break or another blank, a space: so the gate reads it."""
    return " " if character in "\t\n\r\u2028\u2029" else _bare(character)


def _matching(values: Any, pattern: str) -> Any:
    return pc.match_substring_regex(values, pattern).to_numpy(zero_copy_only=False)


def _places(text: str, fold_one: Callable[[str], str]) -> tuple[list[int], list[int]]:
    """Return, for each byte of a text once folded, where the character begins and ends that it came from."""
    begins: list[int] = []
    ends: list[int] = []
    place = 0
    for character in text:
        width, size = len(character.encode()), len(fold_one(character).encode())
        begins += [place] * size
        ends += [place + width] * size
        place += width
    return begins, ends
