"""Fuzz targets: what parses bytes that an attacker may have written, and what must hold whatever these bytes are.

A target is one function of bytes. It returns when what it checks holds, and an error of `portcullis.errors` counts as a
refusal; anything else that it raises is a finding, as are a crash, a hang and memory without bound. Where bytes are
accepted, another reader must read the same from them, so that nothing passes because it was misread.

`python -m fuzz` runs the targets, guided by coverage where atheris is installed, else on what hypothesis makes of the
seeds. `tests/properties/test_fuzz_targets.py` runs the same functions on the seeds and on every input that was ever
found.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """A function to fuzz.

    Attributes:
        name: Its name on the command line.
        fuzz_one: Raises when something does not hold for these bytes; never anything for a refusal.
        seeds: Makes a few inputs to begin with, most of which are accepted.
        words: What its language is made of.
        longest: Most bytes of an input; more would only be slow.
        allocations_mb: How much more memory than at the start the process is given, in MiB; what wants more must
            refuse. None where there is no need: more than 2 GiB is a finding.
    """

    name: str
    fuzz_one: Callable[[bytes], None]
    seeds: Callable[[], Sequence[bytes]]
    words: Sequence[bytes] = ()
    longest: int = 1024
    allocations_mb: int | None = None
