"""Run every benchmark: `python -m benchmarks [--quick]`; records go to build/benchmarks.json."""

import argparse
from pathlib import Path

from benchmarks import (
    at_rest,
    chain,
    dp,
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
    training,
    watermark,
)


def main() -> None:
    """Run all and write all records."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Run every benchmark.")
    parser.add_argument("--quick", action="store_true", help="less work, fewer rounds")
    parser.add_argument("--json", type=Path, default=Path("build/benchmarks.json"), help="write the records here")
    arguments = parser.parse_args()
    parts = (
        *(at_rest, chain, dp, hashing, keyed_answers, membership, overhead, pii, quality, robustness, scan, shards),
        *(training, watermark),
    )
    publish([record for part in parts for record in part.measure(arguments.quick)], arguments.json)


if __name__ == "__main__":
    main()
