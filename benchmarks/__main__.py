"""Run every benchmark: `python -m benchmarks [--quick]`; records go to build/benchmarks.json."""

import argparse
from pathlib import Path

from benchmarks import (
    at_rest,
    chain,
    dp,
    dp_training,
    encryption,
    hashing,
    overhead,
    pii,
    publish,
    quality,
    scan,
    shards,
    signing,
    watermark,
)


def main() -> None:
    """Run all and write all records."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Run every benchmark.")
    parser.add_argument("--quick", action="store_true", help="less work, fewer rounds")
    parser.add_argument("--json", type=Path, default=Path("build/benchmarks.json"), help="write the records here")
    arguments = parser.parse_args()
    parts = (
        at_rest,
        chain,
        dp,
        dp_training,
        encryption,
        hashing,
        overhead,
        pii,
        quality,
        scan,
        shards,
        signing,
        watermark,
    )
    publish([record for part in parts for record in part.measure(arguments.quick)], arguments.json)


if __name__ == "__main__":
    main()
