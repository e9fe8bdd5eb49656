"""Run every benchmark: `python -m benchmarks [--quick]`; records go to build/benchmarks.json."""

import argparse
from pathlib import Path

from benchmarks import (
    at_rest,
    chain,
    dp,
    encryption,
    hashing,
    keyed_answers,
    membership,
    overhead,
    pii,
    publish,
    quality,
    robustness,
    scan,
    shards,
    signing,
    training,
    watermark,
)

PARTS = (
    at_rest,
    chain,
    dp,
    encryption,
    hashing,
    keyed_answers,
    membership,
    overhead,
    pii,
    quality,
    robustness,
    scan,
    shards,
    signing,
    training,
    watermark,
)


def main() -> None:
    """Run all and write all records."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Run every benchmark.")
    parser.add_argument("--quick", action="store_true", help="less work, fewer rounds")
    parser.add_argument("--json", type=Path, default=Path("build/benchmarks.json"), help="write the records here")
    arguments = parser.parse_args()
    publish([record for part in PARTS for record in part.measure(arguments.quick)], arguments.json)


if __name__ == "__main__":
    main()
