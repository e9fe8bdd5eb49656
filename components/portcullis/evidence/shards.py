"""Shards of a step: one use of a stage for each part of the data, each with a statement of its own.

The shard is part of the step's name, `mask_pii#3/64`: the fourth of sixty-four, counted from 0. The policy writes the
step once, with `shards: 64`, and means all of them, under one key and with the same parameters. A statement of any
other count or index is one of a step that the policy does not know.
"""

import re
from dataclasses import dataclass
from typing import Self

MAX_SHARDS = 1024
_SHARD = re.compile(r"[^#]+#(0|[1-9][0-9]{0,3})/([1-9][0-9]{0,3})")


@dataclass(frozen=True)
class Shard:
    """Which of how many parts: `index` from 0 to `count` - 1."""

    index: int
    count: int

    @classmethod
    def of(cls, step: str) -> Self | None:
        """Return the shard that a step's name names; None for a step that is not sharded."""
        match = _SHARD.fullmatch(step)
        return cls(int(match[1]), int(match[2])) if match else None

    def named(self, name: str) -> str:
        """Return the name of this shard of a step, or of what it made: `mask_pii#3/64`."""
        return f"{name}#{self}"

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


def base_step(step: str) -> str:
    """Return a step's name as the policy writes it: `mask_pii` of `mask_pii#3/64`."""
    return step.partition("#")[0]


def shards_of(count: int) -> list[str]:
    """Return what the names of `count` shards end in, `0/4` to `3/4`, as a pipeline loops over them."""
    return [str(Shard(index, count)) for index in range(count)]
