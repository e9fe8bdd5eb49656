"""`shards`: what each step over shards costs per GB of CSV, and what a table of 1 TB would take at 64 shards.

A made-up table of customers lies in as many CSV files as there are shards. Each step runs in a process of its own, one
after the other, on one core, as it would on a machine of its own; the joined data set is compared with that of a run
without shards. Two tables are run, and the cost per GB is the difference's, so that what a process costs by itself
is not taken for what data cost. The terabyte is an extrapolation: processor seconds per GB, since other work on the
machine stretches any others, times the gigabytes that one task gets. It leaves out network, queues and starting pods.
"""

import dataclasses
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import Record, command
from portcullis.ingest.stage import ingest, plan_shards, survey_shard
from portcullis.pii.stage import mask_pii, residual_pii
from portcullis.preflight.stage import preflight
from portcullis.sharding.stage import merge_shards
from portcullis_pipelines.config import ReferenceConfig
from portcullis_pipelines.home import Home, ensure_policy, generate_keys
from portcullis_pipelines.steps import chosen_steps

SHARDS = 4
WHOLE = ("preflight", "ingest", "mask_pii", "residual_pii")
STEPS = (*WHOLE, "survey_shard", "plan_shards", "merge_shards")
CONFIG = ReferenceConfig.from_dict(
    {
        "dataset": {
            "name": "customers",
            "label": {"column": "left", "classes": ["no", "yes"]},
            "features": {"columns": ["age", "balance"], "shape": [2], "low": -100000, "high": 100000},
            "sensitive": {"ssn": "token", "note": "scan"},
        }
    }
)
TERABYTE, AT = 1000, 64  # GB, shards


@dataclasses.dataclass(frozen=True)
class Cost:
    """Processor seconds, and the peak of memory in MiB."""

    processor: float
    memory: float


@dataclasses.dataclass(frozen=True)
class Run:
    """A table's bytes, and what each step cost in each of its shards."""

    size: int
    costs: Mapping[str, Sequence[Cost]]

    def processor(self, step: str) -> float:
        """Return the processor seconds of all shards."""
        return sum(it.processor for it in self.costs[step])


def measure(quick: bool) -> Sequence[Record]:  # noqa: FBT001
    """Return the records of this benchmark."""
    sizes = (8, 40) if quick else (20, 100)
    small, large = (_run(megabytes) for megabytes in sizes)
    gigabytes = (large.size - small.size) / 1e9
    rates = {step: (large.processor(step) - small.processor(step)) / gigabytes for step in large.costs}
    memory = {step: max(it.memory for it in costs) for step, costs in large.costs.items()}
    megabytes = sizes[1]
    records = [_record(f"{step}, {megabytes} MB", "CPU s/GB", rate) for step, rate in rates.items()]
    records += [_record(f"{step}, peak memory", "MiB", peak) for step, peak in memory.items()]
    in_shards = [step for step, costs in large.costs.items() if len(costs) == SHARDS]
    hour = TERABYTE / 3600
    records += [
        _record(f"1 TB at {AT} shards: {step} (extrapolated)", "min", rates[step] * TERABYTE / AT / 60)
        for step in in_shards
    ]
    one = sum(rates[step] for step in in_shards)
    records += [
        _record(f"1 TB at {AT} shards: all of one shard (extrapolated)", "min", one * TERABYTE / AT / 60),
        _record("1 TB: merge_shards, one task (extrapolated)", "h", rates["merge_shards"] * hour),
        _record(f"1 TB at {AT} shards: whole (extrapolated)", "h", (one / AT + rates["merge_shards"]) * hour),
        _record("1 TB in one task (extrapolated)", "h", (one - rates["survey_shard"]) * hour),
    ]
    return records


def _run(megabytes: int) -> Run:
    with tempfile.TemporaryDirectory(prefix="portcullis-bench-") as name:
        folder = Path(name)
        size = _write(folder / "source", megabytes)
        costs = {step: [_apart(call) for call in calls] for step, calls in _sharded(folder)}
        whole, joined = _digests(folder)
    if whole != joined:
        raise AssertionError("the joined shards are not the whole table")
    return Run(size, costs)


def _record(name: str, unit: str, value: float) -> Record:
    return Record(name, unit, value, None, "", None, 0.0, None, "lower")


def _write(source: Path, megabytes: int) -> int:
    """Write the table, and return its bytes."""
    source.mkdir()
    generator = np.random.default_rng(0)
    size = number = 0
    for part in range(SHARDS):
        with (source / f"part-{part}.csv").open("w") as stream:
            size += stream.write("id,first_name,email,ssn,age,balance,note,left\n")
            while size < megabytes * 1_000_000 * (part + 1) / SHARDS:
                draws = generator.integers(0, 1 << 40, (1000, 3)).tolist()
                rows = []
                for one, two, three in draws:
                    number += 1
                    told = (
                        f"called user{one:x}@example.com about {two} units" if one % 4 == 0 else f"order {two:x} sent"
                    )
                    rows.append(
                        f"{number},Mary{number % 7},u{one:x}@example.com,{100 + two % 500}-{10 + two % 80}-"
                        f"{1000 + three % 8000},{18 + one % 70},{(two % 1_000_000) / 100},{told} to the usual address,"
                        f"{'yes' if three % 2 else 'no'}\n"
                    )
                size += stream.write("".join(rows))
    return size


def _sharded(folder: Path) -> list[tuple[str, list[Callable[[], object]]]]:
    """Return the calls of each step over shards, in order."""
    config = dataclasses.replace(CONFIG, shards=SHARDS)
    home = _home(folder / "sharded", config, STEPS)
    given = config.arguments(str(folder / "source"))
    read = {"uri": given["data_uri"], "spec": given["dataset_spec"]}
    os.environ.update(home.environment)
    nonce = preflight(step="preflight", bundle=folder / "begun")
    shards = range(SHARDS)

    def path(name: str, index: int) -> Path:
        return folder / f"{name}-{index}"

    def calls(stage: Callable[..., object], step: str, arguments: Callable[[int], Mapping[str, Any]]) -> Any:
        return step, [_Call(stage, {"step": f"{step}#{it}/{SHARDS}", **arguments(it)}) for it in shards]

    return [
        calls(
            survey_shard,
            "survey_shard",
            lambda it: {
                **read,
                "nonce": nonce,
                "evidence": folder / "begun",
                "survey": path("survey", it),
                "head": path("head", it),
                "bundle": path("survey.evidence", it),
            },
        ),
        (
            "plan_shards",
            [
                _Call(
                    plan_shards,
                    {
                        "step": "plan_shards",
                        "surveys": [path("survey", it) for it in shards],
                        "heads": [path("head", it) for it in shards],
                        "evidence": [path("survey.evidence", it) for it in shards],
                        "spec": read["spec"],
                        "plan": folder / "plan",
                        "head": folder / "head",
                        "bundle": folder / "plan.evidence",
                    },
                )
            ],
        ),
        calls(
            ingest,
            "ingest",
            lambda it: {
                **read,
                "nonce": nonce,
                "evidence": folder / "plan.evidence",
                "plan": folder / "plan",
                "dataset": path("raw", it),
                "quarantine": path("quarantine", it),
                "bundle": path("raw.evidence", it),
            },
        ),
        calls(
            mask_pii,
            "mask_pii",
            lambda it: {
                "dataset": path("raw", it),
                "evidence": path("raw.evidence", it),
                "masking": given["masking"],
                "head": folder / "head",
                "masked": path("masked", it),
                "bundle": path("masked.evidence", it),
            },
        ),
        calls(
            residual_pii,
            "residual_pii",
            lambda it: {
                "dataset": path("masked", it),
                "evidence": path("masked.evidence", it),
                "masking": given["masking"],
                "report": path("report", it),
                "details": path("details", it),
                "bundle": path("judged.evidence", it),
            },
        ),
        (
            "merge_shards",
            [
                _Call(
                    merge_shards,
                    {
                        "step": "merge_shards",
                        "datasets": [path("masked", it) for it in shards],
                        "evidence": [path("judged.evidence", it) for it in shards],
                        "merged": folder / "merged",
                        "bundle": folder / "merged.evidence",
                    },
                )
            ],
        ),
    ]


def _digests(folder: Path) -> tuple[str, str]:
    """Run the same without shards, and return its data set's digest and that of the joined shards."""
    from portcullis.at_rest import product_digest

    joined = product_digest(folder / "merged")
    keys = Home(folder / "sharded").keys
    home = _home(folder / "whole", CONFIG, WHOLE)
    for name in ("masking.key", "pipeline.pem", "pipeline.pub.pem"):
        (home.keys / name).write_bytes((keys / name).read_bytes())
    os.environ.update(home.environment)
    given = CONFIG.arguments(str(folder / "source"))
    nonce = preflight(step="preflight", bundle=folder / "whole.begun")
    ingest(
        step="ingest",
        nonce=nonce,
        evidence=folder / "whole.begun",
        uri=given["data_uri"],
        spec=given["dataset_spec"],
        dataset=folder / "whole.raw",
        quarantine=folder / "whole.quarantine",
        bundle=folder / "whole.evidence",
    )
    masked = mask_pii(
        step="mask_pii",
        dataset=folder / "whole.raw",
        evidence=folder / "whole.evidence",
        masking=given["masking"],
        masked=folder / "whole.masked",
        bundle=folder / "whole.masked.evidence",
    )
    return masked.outputs["dataset"], joined


def _home(root: Path, config: ReferenceConfig, steps: Sequence[str]) -> Home:
    home = Home(root)
    generate_keys(home, steps)
    ensure_policy(home, "customers", chosen_steps(config, steps))
    return home


@dataclasses.dataclass(frozen=True)
class _Call:
    """A call that another process can be handed."""

    stage: Callable[..., object]
    arguments: Mapping[str, Any]

    def __call__(self) -> object:
        return self.stage(**self.arguments)


def _apart(call: Callable[[], object]) -> Cost:
    """Make a call in a process of its own."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measured, args=(call, sender))
    process.start()
    sender.close()
    try:
        cost: Cost = receiver.recv()
    except EOFError as error:
        raise AssertionError("a step failed; see above") from error
    process.join()
    return cost


def _measured(call: Callable[[], object], sender: Any) -> None:
    started = time.process_time()
    call()
    sender.send(Cost(time.process_time() - started, _peak()))


def _peak() -> float:
    """Return the peak of this process's memory in MiB; what `getrusage` tells begins with its parent's."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024


if __name__ == "__main__":
    command("shards", measure)
