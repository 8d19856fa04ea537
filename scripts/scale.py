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

HERE = Path(__file__).resolve().parent
TIMES = {"equal": 1, "move": 10, "overhead": 12, "model": 4, "memory": 1, "bucket": 15}
ON_GPUS = ("equal", "move")
OF_SHARDS = ("memory", "bucket")


def main() -> None:
    """Run one of the tests and print its results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=list(TIMES))
    parser.add_argument("--times", type=int, help="moves, pairs of measurements, or epochs")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--gpus", type=int, default=0, help="of this host, for equal and move")
    parser.add_argument("--pretrained", action="store_true", help="for equal: fine-tune a backbone")
    arguments = parser.parse_args()
    if arguments.pretrained and arguments.what != "equal":
        parser.error("--pretrained is for equal")
    if arguments.gpus and arguments.what not in ON_GPUS:
        parser.error(f"--gpus is for {' and '.join(ON_GPUS)}")
    # Modules of the tests and of chaos.py are used for processes and the bucket.
    sys.path[:0] = [str(HERE.parent), str(HERE.parent / "tests")]
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    from trainer.cli.bootstrap import prepare_libraries

    prepare_libraries()
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {date.today()}")
    began = time.monotonic()
    if arguments.what in OF_SHARDS:
        chosen = getattr(importlib.import_module("scale.shards"), arguments.what)
    else:
        chosen = importlib.import_module(f"scale.{arguments.what}").main
    more = {"gpus": arguments.gpus} if arguments.gpus else {}
    more |= {"pretrained": True} if arguments.pretrained else {}
    problems = chosen(arguments.times or TIMES[arguments.what], arguments.seed, **more)
    for problem in problems:
        print(f"MISSED: {problem}")
    print(f"{arguments.what}: {'missed' if problems else 'as asked'}, in {time.monotonic() - began:.0f} s")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
