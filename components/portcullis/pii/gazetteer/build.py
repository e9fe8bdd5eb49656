"""How `names.txt.xz` was made: `python build.py` where `names==0.3.0` and `Faker==40.63.0` are installed.

Not part of the engine, which only reads the result. What it takes from where is told in README.md beside it.
"""

import importlib
import lzma
import pkgutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from portcullis.pii.person_names import words

# The most common surnames; beyond, the list of 88,799 is mostly ordinary words of some language.
_SURNAMES = 20_000


def _census(file: str) -> list[str]:
    import names  # type: ignore[import-not-found]

    return [line.split()[0] for line in Path(names.__file__).with_name(file).read_text("ascii").splitlines()]


def _faker() -> Iterator[tuple[str, str]]:
    """Yield each name of Faker's providers with `g` (given) or `s` (surname)."""
    person = importlib.import_module("faker.providers.person")
    for locale in pkgutil.iter_modules(person.__path__):
        provider = importlib.import_module(f"faker.providers.person.{locale.name}").Provider
        for field, values in vars(provider).items():
            kind = "g" if "first" in field else "s" if "last_name" in field else ""
            if kind and "pairs" not in field and isinstance(values, Iterable):
                yield from ((name, kind) for name in values if isinstance(name, str))


def _tokens(named: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    for name, kind in named:
        for word in words(name):
            if len(word) > 1 and word.isalpha():
                yield word, kind


def main() -> None:
    """Write `names.txt.xz`: a word a line, after it `g`, `s` or `gs`."""
    named = [(name, "g") for file in ("dist.female.first", "dist.male.first") for name in _census(file)]
    named += [(name, "s") for name in _census("dist.all.last")[:_SURNAMES]]
    kinds: dict[str, set[str]] = {}
    for word, kind in _tokens([*named, *_faker()]):
        kinds.setdefault(word, set()).add(kind)
    lines = "".join(f"{word} {''.join(sorted(kinds[word]))}\n" for word in sorted(kinds))
    Path(__file__).with_name("names.txt.xz").write_bytes(lzma.compress(lines.encode(), preset=9))


if __name__ == "__main__":
    main()
