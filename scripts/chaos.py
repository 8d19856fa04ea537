"""Fault-injection tests of whole runs.

    python scripts/chaos.py kills --times 50     SIGKILL at random moments: bit-identical results
    python scripts/chaos.py kills --set train.keep=best    the same, for runs that keep the best epoch
    python scripts/chaos.py kills --pretrained --during training     the same, for fine-tuning in phases
    python scripts/chaos.py faults --times 100   network faults: verified files, or nothing visible
    python scripts/chaos.py stops --times 20     SIGTERM: time until the process has saved and exited
    python scripts/chaos.py races --times 200    eight processes, one pointer or one run: one winner
    python scripts/chaos.py schedules --times 100  two schedules at once: one run, one decision
    python scripts/chaos.py cost --times 20      throughput cost of a checkpoint every 30 s
    python scripts/chaos.py transfer --times 3   our transfers / the client library's fastest setting

Needs the test dependencies. The bucket is gcp-storage-emulator in a local process. Exits with code 1 if a
check fails.
"""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import sys
from datetime import date
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
TIMES = {"kills": 50, "faults": 100, "stops": 20, "races": 200, "schedules": 100, "cost": 20, "transfer": 3}


def main() -> None:
    """Run one of the tests and print its results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("test", choices=list(TIMES))
    parser.add_argument("--times", type=int)
    parser.add_argument("--seed", type=int, default=0, help="seed of the random moments and faults")
    parser.add_argument("--set", action="append", default=[], help="setting of the runs, for kills")
    parser.add_argument("--pretrained", action="store_true", help="fine-tune a backbone, for kills")
    parser.add_argument(
        "--during", default="", help="phase of the kills: start, training, export, publish or manifest"
    )
    arguments = parser.parse_args()
    if (arguments.set or arguments.pretrained or arguments.during) and arguments.test != "kills":
        parser.error(f"--set, --pretrained and --during apply to kills only. Received: {arguments.test}")
    # The emulator and the fault proxy are modules of the tests.
    sys.path[:0] = [str(HERE.parent), str(HERE.parent / "tests")]
    from trainer.cli.bootstrap import prepare_libraries

    prepare_libraries()
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {date.today()}")
    module = importlib.import_module(f"chaos.{arguments.test}")
    options: dict[str, Any] = {"pretrained": True} if arguments.pretrained else {}
    options |= {"during": arguments.during} if arguments.during else {}
    problems = module.main(
        arguments.times or TIMES[arguments.test], arguments.seed, *arguments.set, **options
    )
    for problem in problems:
        print(f"FAILED: {problem}")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
