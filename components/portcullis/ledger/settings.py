"""What the policy says of a ledger: of which data set, how much all runs may spend, and where it is kept."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from portcullis.errors import ConfigError
from portcullis.ledger.mechanisms import MAX_EPSILON, MIN_DELTA

LOCAL = "local"
MAX_URI = 512
_DATASET = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_FIELDS = ("dataset", "epsilon", "delta", "unit", "store", "memory")


@dataclass(frozen=True)
class LedgerSettings:
    """The budget of a data set, as the policy's owner signs it.

    Attributes:
        dataset: The data set's id, chosen by the owner and kept for good: rows may come and go, and under another id
            the same people would have a fresh budget. a-z, 0-9 and hyphen, at most 63.
        epsilon: Most that all releases of all runs together may cost a unit, above 0 and at most 512.
        delta: At which delta; 0 allows pure mechanisms only, else 1e-10 to below 1.
        unit: Whose privacy is counted, `row` or `person`; a charge for another unit is refused.
        store: Where the ledger is kept: `local`, where the run is, or an object's URI (see `portcullis.ledger.stores`).
        memory: Where the last head that was seen is kept, apart from the ledger; likewise.

    Raises:
        ConfigError: A value is out of its range, or the memory is the ledger's own place.
    """

    dataset: str
    epsilon: float
    delta: float = 0.0
    unit: str = "row"
    store: str = LOCAL
    memory: str = LOCAL

    def __post_init__(self) -> None:
        if not isinstance(self.dataset, str) or not _DATASET.fullmatch(self.dataset):
            raise ConfigError("ledger.dataset is 1 to 63 of a-z, 0-9 and '-', such as customers")
        if type(self.epsilon) not in (int, float) or not 0 < self.epsilon <= MAX_EPSILON:
            raise ConfigError(f"ledger.epsilon must be a number above 0 and at most {MAX_EPSILON:g}")
        if type(self.delta) not in (int, float) or not (self.delta == 0 or MIN_DELTA <= self.delta < 1):
            raise ConfigError(f"ledger.delta must be 0, or a number from {MIN_DELTA:g} to below 1")
        if self.unit not in ("row", "person"):
            raise ConfigError("ledger.unit must be row or person")
        for name, uri in (("store", self.store), ("memory", self.memory)):
            if not isinstance(uri, str) or not uri.isascii() or not uri.isprintable() or not 1 <= len(uri) <= MAX_URI:
                raise ConfigError(f"ledger.{name} is `local` or the URI of an object")
        if self.store == self.memory and self.store != LOCAL:
            raise ConfigError("ledger.memory must lie elsewhere than ledger.store, or both are rolled back at once")

    @classmethod
    def from_dict(cls, value: Any) -> "LedgerSettings":
        """Read plain values, as the policy and a pipeline's parameters hold them.

        Raises:
            ConfigError: Not a mapping, a field is missing or unknown, or as the class.
        """
        if not isinstance(value, Mapping) or set(value) != set(_FIELDS):
            raise ConfigError(f"ledger: needs exactly {', '.join(_FIELDS)}")
        return cls(**value)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; `from_dict` inverts it."""
        return asdict(self)
