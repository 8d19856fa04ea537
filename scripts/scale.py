"""Scaling tests: more devices and more processes change the speed but not the result.

    python scripts/scale.py equal               one spec on 1, 2 and 4 replicas: the same curves and variables
    python scripts/scale.py equal --pretrained  the same, for fine-tuning a backbone in phases
    python scripts/scale.py move --times 10     a run moved between them by SIGTERM and SIGKILL: the same end
    python scripts/scale.py overhead            2 processes on 2 cores / 1 process with 2 threads
    python scripts/scale.py model               a cost model, validated here; predictions for 8, 64 and 512
    python scripts/scale.py memory              250,000 images from shards / 2,500: memory and images/s
    python scripts/scale.py bucket              shards in an emulated bucket: time spent waiting for data

Needs the test dependencies, two cores and the loopback network. Logical CPU devices stand in for the GPUs of
a host, processes for hosts. `equal` and `move` accept `--gpus 4` on a host with that many GPUs, and compare
1, 2 and 4 of them with its CPU. Exits with 1 if a requirement is missed.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
TIMES = {"equal": 1, "move": 10, "overhead": 12, "model": 4, "memory": 1, "bucket": 15}
ON_GPUS = ("equal", "move")
OF_SHARDS = ("memory", "bucket")


def main() -> None:
    """Run one of the tests and print its results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("test", choices=list(TIMES))
    parser.add_argument("--times", type=int, help="number of moves, pairs of measurements, or epochs")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random moments")
    parser.add_argument("--gpus", type=int, default=0, help="number of GPUs of this host, for equal and move")
    parser.add_argument("--pretrained", action="store_true", help="fine-tune a backbone, for equal")
    arguments = parser.parse_args()
    if arguments.pretrained and arguments.test != "equal":
        parser.error("--pretrained applies to equal only")
    if arguments.gpus and arguments.test not in ON_GPUS:
        parser.error(f"--gpus applies to {' and '.join(ON_GPUS)} only")
    # Modules of the tests and of chaos.py are used for processes and the bucket.
    sys.path[:0] = [str(HERE.parent), str(HERE.parent / "tests")]
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    from trainer.cli.bootstrap import prepare_libraries

    prepare_libraries()
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {date.today()}")
    began = time.monotonic()
    if arguments.test in OF_SHARDS:
        run_test = getattr(importlib.import_module("scale.shards"), arguments.test)
    else:
        run_test = importlib.import_module(f"scale.{arguments.test}").main
    options: dict[str, Any] = {"gpus": arguments.gpus} if arguments.gpus else {}
    options |= {"pretrained": True} if arguments.pretrained else {}
    problems = run_test(arguments.times or TIMES[arguments.test], arguments.seed, **options)
    for problem in problems:
        print(f"FAILED: {problem}")
    print(f"{arguments.test}: {'failed' if problems else 'passed'}, in {time.monotonic() - began:.0f} s")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
