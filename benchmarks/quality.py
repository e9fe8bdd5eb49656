"""`quality`: how often the data-quality gate refuses clean data and poisoned data, and what it costs.

Clean: random four fifths of the reference data, in random order. Poisoned: other such parts, with a share of the rows
poisoned. Both are judged as the reference policy does, each with another seed of the reference network. The bounds were
set on yet other parts (seeds 0 to 99), but all are parts of the same 1,797 rows.
"""

import dataclasses
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
    clean, dirty = (20, 1) if quick else (40, 5)
    alarms = [refused(part(data, SHARE, seed=seed), config, seed) for seed in range(2000, 2000 + clean)]
    records = [_share(f"clean, of {clean} parts refused", alarms, target=0.0)]
    for kind in POISONS:
        for rate in RATES:
            seeds = range(1000, 1000 + dirty)
            found = [
                refused(poisoned(part(data, SHARE, seed=seed), kind, rate, seed=seed), config, seed) for seed in seeds
            ]
            records.append(_share(f"{kind}, {rate:.1%} of the rows: refused", found, target=None))
    records.append(compare("screening the reference data", lambda: refused(data, config, 0), None, rounds=3, target=8))
    return records


def _share(name: str, outcomes: Sequence[bool], *, target: float | None) -> Record:
    refusals = 100 * sum(outcomes) / len(outcomes)
    return Record(
        name=name,
        unit="%",
        ours=refusals,
        peer=None,
        peer_name="",
        ratio=None,
        spread=0.0,
        target=target,
        better="lower" if target is not None else "higher",
    )


if __name__ == "__main__":
    command("quality", measure)
