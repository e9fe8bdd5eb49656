"""Person names by what a column's cells look like: their shape, and how many of their words a gazetteer knows.

A gazetteer holds common names, not all names, and many of its words are also towns, products and words of some
language. So no cell is a name by itself: `portcullis.pii.profile` judges the cells of a column together.
"""

import lzma
import re
import unicodedata
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import resources

from portcullis.pii.folding import fold

GIVEN, SURNAME = 1, 2
# Characters of a cell beyond which it is a text.
_LONGEST = 64
_MOST_WORDS = 6
_TITLES = re.compile(
    r"mr|mrs|ms|miss|mx|dr|prof|sir|dame|rev|hon|capt|sgt|jr|sr|ii|iii|iv|md|phd|esq|herr|frau|fr|hr|ing|mag|dipl|m"
    r"|mme|mlle|sig|sra|srta|don|dona|dna|pan|pani|dhr|mevr|senor|senora"
)
# Small words inside a name, written small.
_PARTICLES = re.compile(
    r"von|van|de|der|den|del|della|di|da|do|dos|das|du|la|le|el|al|bin|ibn|ben|ter|ten|zu|zur|y|e|af|av|san|st|o|mac"
    r"|mc|abu|abd"
)
# Letters that carry their stroke or ligature in themselves, so that no mark can be taken off.
_PLAIN = str.maketrans(
    {"ø": "o", "ł": "l", "đ": "d", "ß": "ss", "æ": "ae", "œ": "oe", "ð": "d", "þ": "th", "ı": "i", "ς": "σ"}
)
_WORD = re.compile(r"[^\W\d_]+")
_SHAPE = re.compile(r"[^\W\d_](?:[^\W\d_]|[ .,'’`´-](?![.,]))*")
_PAIR = re.compile(r"(?<![^\W_])([^\W\d_a-z][^\W\d_]+)[ \xa0]+(?:[^\W\d_]\.?[ \xa0]+)?([^\W\d_a-z][^\W\d_]+)(?![^\W_])")


def words(text: str) -> list[str]:
    """Return the words of `text` as the gazetteer spells them: case-folded, without accents."""
    return _WORD.findall(_plain(text))


@cache
def gazetteer() -> Mapping[str, int]:
    """Return the known names: each word, and whether it is a `GIVEN` name, a `SURNAME` or both (their sum)."""
    packed = resources.files("portcullis.pii.gazetteer").joinpath("names.txt.xz").read_bytes()
    lines = (line.split(" ") for line in lzma.decompress(packed).decode().splitlines())
    return {word: {"g": GIVEN, "s": SURNAME, "gs": GIVEN | SURNAME}[kinds] for word, kinds in lines}


def shaped_as_name(text: str) -> bool:
    """Tell whether a cell could be a person's name: up to six words of letters, capitalised as names are.

    All small, all capital, and scripts without capitals count as capitalised.
    """
    text = " ".join(fold(text).split())
    if not 2 <= len(text) <= _LONGEST or _SHAPE.fullmatch(text) is None:
        return False
    written = _WORD.findall(text)
    if len(written) > _MOST_WORDS:
        return False
    return text.islower() or all(_capitalised(word) or _PARTICLES.fullmatch(word.lower()) for word in written)


def known_as(text: str) -> int:
    """Return what a cell that is shaped as a name is known as: `GIVEN`, `SURNAME`, their sum, or 0.

    One word is what the gazetteer says of it. Several are `GIVEN` where the first or the last is a given name, and
    `SURNAME` too where the other is known as well.
    """
    kinds = [gazetteer().get(word, 0) for word in words(text) if len(word) > 1 and not _small(word)]
    if len(kinds) <= 1:
        return sum(kinds)
    first, last = sorted((kinds[0], kinds[-1]), key=lambda kind: kind & GIVEN, reverse=True)
    return first & GIVEN and GIVEN | (SURNAME if last else 0)


def single(text: str) -> bool:
    """Tell whether a cell is one name only, titles and particles aside."""
    return sum(not _small(word) for word in words(text)) <= 1


def possible_names(text: str) -> Iterator[tuple[int, int]]:
    """Yield where free text may name a person, in characters: a known given name, and a capitalised word after it.

    It is an indication and no finding: it misses what the gazetteer does not know, and takes `Paris Agreement` for a
    person.
    """
    for match in _PAIR.finditer(text):
        first, last = (words(word) for word in match.groups())
        if first and last and gazetteer().get(first[0], 0) & GIVEN and gazetteer().get(last[0], 0):
            yield match.span()


def _plain(text: str) -> str:
    decomposed = unicodedata.normalize("NFKD", fold(text)[: 4 * _LONGEST].casefold())
    return "".join(mark for mark in decomposed if not unicodedata.combining(mark)).translate(_PLAIN)


def _small(word: str) -> bool:
    return _TITLES.fullmatch(word) is not None or _PARTICLES.fullmatch(word) is not None


def _capitalised(word: str) -> bool:
    return word[0] != word[0].lower() or word.lower() == word.upper()
