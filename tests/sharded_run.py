"""One real run of the steps on raw data over shards, by the local runner; as a program, the process that it runs in."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from portcullis_pipelines.config import ReferenceConfig
from portcullis_pipelines.home import Home, ensure_policy, generate_keys
from portcullis_pipelines.steps import chosen_steps

SHARDS = 3
STEPS = ("preflight", "survey_shard", "plan_shards", "ingest", "mask_pii", "residual_pii", "merge_shards")
CONFIG = ReferenceConfig.from_dict(
    {
        "dataset": {
            "name": "small",
            "label": {"column": "label", "classes": ["no", "yes"]},
            "features": {"columns": ["f0", "f1"], "shape": [2], "low": 0, "high": 9},
            "sensitive": {"zip": "token", "note": "scan"},
            "quarantine_at_most": 4,
        },
        "masking": {"entities": ["EMAIL", "US_SSN", "PERSON_NAME"]},
        "shards": SHARDS,
    }
)
NAMES = ["Mary", "John", "Linda", "James", "Susan", "Robert", "Karen", "Michael", "Nancy", "David", "Lisa", "Daniel"]


MALFORMED = {1: b"7,1,item 9", 2: b"7,1,caf\xe9,9,02139,nothing,no", 3: b"7,99,item 9,9,02139,nothing,no"}


def write_source(folder: Path) -> None:
    """Write four files: names in the first only, which has the head, and numbers that the last one makes text.

    All but the first have a malformed record, after their fifth.
    """
    folder.mkdir()
    for part in range(4):
        lines = ["f0,f1,first_name,code,zip,note,label"]
        for row in range(60 if part else 9000):
            name = f"item {row}" if part else NAMES[row % 12]
            code = f"{row}" if part < 3 else f"0{row}"
            note = f'"call a{part}{row}@example.com, or\n{100 + row % 500}-45-{1000 + row}"' if row % 3 else "nothing"
            lines.append(f"{row % 9},{row % 4},{name},{code},0{2000 + row},{note},{'yes' if row % 2 else 'no'}")
        records = [line.encode() for line in lines]
        records[6:6] = [MALFORMED[part]] if part in MALFORMED else []
        (folder / f"part-{part}.csv").write_bytes(b"\n".join(records) + b"\n")


@dataclass(frozen=True)
class ShardedRun:
    """What a run left (`root`), of which data (`source`), under which keys and policy (`home`)."""

    root: Path
    source: Path
    home: Home
    config: ReferenceConfig
    log: str

    @contextmanager
    def environment(self) -> Iterator[None]:
        before = {name: os.environ.get(name) for name in self.home.environment}
        os.environ.update(self.home.environment)
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})

    def task(self, pattern: str) -> Path:
        (found,) = self.root.glob(f"**/{pattern}")
        return found

    def shards(self, pattern: str) -> list[Path]:
        """Return what each shard's task left, in the order of the shards."""
        found = {int(path.parent.parent.name.rpartition("-")[2]): path for path in self.root.glob(f"**/{pattern}")}
        return [found[index] for index in sorted(found)]


def prepare(folder: Path, config: ReferenceConfig = CONFIG, steps: tuple[str, ...] = STEPS) -> Home:
    home = Home(folder / "home")
    generate_keys(home, steps)
    ensure_policy(home, "small", chosen_steps(config, steps))
    return home


def make_sharded_run(folder: Path) -> ShardedRun:
    home = prepare(folder)
    write_source(folder / "source")
    request = {"root": str(folder / "root"), "arguments": arguments(CONFIG, str(folder / "source"))}
    done = subprocess.run(
        [sys.executable, __file__],
        input=json.dumps(request),
        env={**os.environ, **home.environment, "TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return ShardedRun(folder / "root", folder / "source", home, CONFIG, done.stdout)


def arguments(config: ReferenceConfig, uri: str) -> dict[str, Any]:
    given = config.arguments(uri)
    return {name: given[name] for name in ("data_uri", "dataset_spec", "masking", "shards")}


def over(config: ReferenceConfig, shards: int) -> ReferenceConfig:
    return replace(config, shards=shards)


def main() -> int:
    from kfp.dsl import Artifact, Dataset  # noqa: F401 - KFP reads the annotations

    from portcullis.harden import harden, secret_name, secure_pipeline
    from portcullis.preflight.component import preflight
    from portcullis_pipelines.local import run_pipeline
    from portcullis_pipelines.sharded import masking_over_shards

    @secure_pipeline(name="data")
    def data(data_uri: str, dataset_spec: str, masking: dict[str, Any], shards: list[dict[str, str]]) -> Dataset:
        started = harden(preflight(), secret=secret_name("preflight"))
        return masking_over_shards(
            evidence=started.outputs["evidence"],
            nonce=started.outputs["nonce"],
            data_uri=data_uri,
            dataset_spec=dataset_spec,
            masking=masking,
            shards=shards,
        ).outputs["dataset"]

    request = json.load(sys.stdin)
    run_pipeline(data, request["arguments"], Path(request["root"]), log=sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
