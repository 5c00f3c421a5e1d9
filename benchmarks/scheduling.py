"""What scheduling costs: many small instances, and the share of the workers' time in which none of them runs.

.venv/bin/python benchmarks/scheduling.py --count 1000 --executor local --jobs 2
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from curvverify.cli.child import Instance, Limits
from curvverify.cli.executors import opened, run_all
from curvverify.demo import HOLDS, MODEL

FLAGS = ["--threads", "1", "--real-semantics"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--executor", default="local")
    parser.add_argument("--jobs", type=int, default=2)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(MODEL, Path(folder) / "moons.onnx")
        shutil.copy(HOLDS, Path(folder) / "holds.vnnlib")
        # one instance, many times: the family is its number, so that every one counts as another
        instances = [Instance(f"{k}", "moons.onnx", "holds.vnnlib", 60.0, Path(folder)) for k in range(given.count)]
        with opened(given.executor, given.jobs, 1) as (pool, here):
            list(run_all(instances[: given.jobs], FLAGS, Limits(5.0, 8.0), pool, here))  # start the templates
            begun = time.monotonic()
            records = list(run_all(instances, FLAGS, Limits(5.0, 8.0), pool, here))
            wall = time.monotonic() - begun
    assert len({record.key for record in records}) == given.count
    busy = sum(record.seconds for record in records)
    sys.stdout.write(
        f"{given.executor}, {given.jobs} at a time: {given.count} instances in {wall:.1f} s, "
        f"{sum(record.verdict == 'unsat' for record in records)} unsat, "
        f"median {statistics.median(record.seconds for record in records):.3f} s each; "
        f"lost to scheduling: {1.0 - busy / (given.jobs * wall):.1%}\n"
    )


if __name__ == "__main__":
    main()
