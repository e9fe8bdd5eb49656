"""`quality`: how often the data-quality gate refuses clean data and poisoned data, and what it costs.

Clean: random four fifths of the reference data, in random order. Poisoned: other such parts, with a share of the rows
poisoned. Both are judged as the reference policy does, each with another seed of the reference network. No seed is used
twice. Bounds and methods were chosen on seeds below 3,000; those used here begin at 100,000 and were looked at after
that. But all are parts of the same 1,797 rows, so the intervals (Wilson 1927, 95 %) speak of such parts and of no
other data.
"""

import dataclasses
import math
from collections.abc import Sequence

from benchmarks import Record, command, compare
from benchmarks.poisons import POISONS, part, poisoned
from portcullis.dataset import Dataset
from portcullis.errors import InconclusiveError
from portcullis.evidence.statement import Check, Figure, judge
from portcullis.ingest.readers import read_source
from portcullis.quality.screen import screen
from portcullis_pipelines.config import ReferenceConfig
from portcullis_pipelines.steps import STEPS

RATES = (0.005, 0.01, 0.02, 0.05, 0.1)
SHARE = 0.8
FIRST_SEED = 100_000  # of clean parts; the poisoned ones' follow, cell by cell


def refused(dataset: Dataset, config: ReferenceConfig, seed: int) -> bool:
    """Tell whether the reference policy refuses a data set, with the reference network's seed."""
    figures: dict[str, Figure] = {}
    try:
        for finding in screen(dataset, dataclasses.replace(config.screening, seed=seed)):
            figures |= finding.figures
    except InconclusiveError:
        return True
    (step,) = (it for it in STEPS if it.name == "data_quality")
    checks = {name: Check(it.get("min"), it.get("max")) for name, it in step.checks(config).items()}
    return judge(figures, checks)[0] != "PASSED"


def measure(quick: bool) -> Sequence[Record]:  # noqa: FBT001
    """Return the records of this benchmark."""
    config = ReferenceConfig.load(None)
    source = read_source("builtin:cheque-digits", config.dataset)
    data = Dataset(source.table, source.spec)
    clean, dirty = (20, 1) if quick else (200, 20)
    seed = FIRST_SEED
    alarms = [refused(part(data, SHARE, seed=each), config, each) for each in range(seed, seed + clean)]
    records = [_share("clean", alarms, target=0.0)]
    seed += clean
    for kind in POISONS:
        for rate in RATES:
            found = [
                refused(poisoned(part(data, SHARE, seed=each), kind, rate, seed=each), config, each)
                for each in range(seed, seed + dirty)
            ]
            seed += dirty
            records.append(_share(f"{kind}, {rate:.1%} of the rows", found, target=None))
    records.append(compare("screening the reference data", lambda: refused(data, config, 0), None, rounds=3, target=8))
    return records


def wilson(count: int, of: int) -> tuple[float, float]:
    """Return the 95 % score interval of a share, 0..1 (Wilson 1927, doi:10.1080/01621459.1927.10502953)."""
    z = 1.959964
    middle = (count + z * z / 2) / (of + z * z)
    half = z / (of + z * z) * math.sqrt(count * (of - count) / of + z * z / 4)
    return max(0.0, middle - half), min(1.0, middle + half)


def _share(name: str, outcomes: Sequence[bool], *, target: float | None) -> Record:
    refusals, of = sum(outcomes), len(outcomes)
    low, high = wilson(refusals, of)
    return Record(
        name=f"{name}: refused {refusals} of {of} ({low:.0%} to {high:.0%})",
        unit="%",
        ours=100 * refusals / of,
        peer=None,
        peer_name="",
        ratio=None,
        spread=0.0,
        target=target,
        better="lower" if target is not None else "higher",
    )


if __name__ == "__main__":
    command("quality", measure)
