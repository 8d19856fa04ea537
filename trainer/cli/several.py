"""Runs that differ in one respect: common start, training processes and comparability.

Each run is trained in a separate process, which ends with this one.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import IO, TYPE_CHECKING

from trainer.distributed.process_info import PROCESS_VARIABLES
from trainer.errors import DataError, TrainerError, UsageError, error_of

if TYPE_CHECKING:
    from trainer.compare.runs import Run
    from trainer.spec import RunSpec

_RESUME = "Run the same command to resume"
_REMEDIES = dict.fromkeys((1, 137, 143), f"{_RESUME}.") | {75: f"{_RESUME} when the cause above is fixed."}
"""Remedy for each exit code from which a restart can recover."""
_SIGNALLED = 128
_PR_SET_PDEATHSIG = 1


def unreleased(spec: RunSpec) -> RunSpec:
    """Return `spec` without skipping, retention and champion challenge.

    The best of several equally good runs would replace the champion more often than the test allows.
    """
    changes = {"skip_unchanged": False, "keep_runs": None, "release": False}
    return spec.model_copy(update={"publish": spec.publish.model_copy(update=changes)})


def find_common_start(spec: RunSpec, varied: str) -> str:
    """Return the run that all runs start from, as `train.start_from`, even if the champion changes later.

    `varied` names what the runs differ in. Raises UsageError if each run would start from the previous one.
    """
    from trainer.cli.paths import absolute_source
    from trainer.runs import find_start
    from trainer.runs.publish import parent_of
    from trainer.spec.schema import LATEST, SCRATCH
    from trainer.storage.store import open_store

    start_from = spec.train.start_from
    if parent_of(start_from)[1] == LATEST:
        raise UsageError(
            "Each of these runs would start from the weights of the previous one, so they would differ in "
            f"more than {varied}.",
            "Set train.start_from to a run, or to champion.",
            received=f"train.start_from={start_from}",
        )
    start = find_start(open_store(spec.output), start_from)
    # The run names are derived from it, so it must not depend on the working directory.
    return SCRATCH if start is None else absolute_source(start.uri)


def with_start(spec: RunSpec, start_from: str) -> RunSpec:
    """Return `spec` with another `train.start_from`."""
    return spec.model_copy(update={"train": spec.train.model_copy(update={"start_from": start_from})})


def require_alike(runs: Sequence[Run], varied: str = "the seed") -> None:
    """Raise DataError unless all runs have the same data and the same initial weights."""
    for subject, values in (
        ("data", [run.dataset.get("digest") for run in runs]),
        ("initial weights", [run.environment.get("started_from") for run in runs]),
    ):
        other = next((run.name for run, value in zip(runs, values, strict=True) if value != values[0]), None)
        if other is not None:
            raise DataError(
                f"The {subject} changed after the first of these runs, so they differ in more than {varied}.",
                "Set another --run-name to train all of them again.",
                received=f"{runs[0].name} and {other}",
            )


def train_apart(spec: RunSpec, quiet: bool) -> None:
    """Train one run in a separate process; a stop is forwarded. Raises the error of its exit code."""
    # Standard output is then reserved for JSON.
    child = start_training(spec, stdout=sys.stderr if quiet else None)
    code = end_of(child, child.wait)
    if code:
        raise error_of_run(spec.run_name or "", code)


def start_training(
    spec: RunSpec,
    words: Sequence[str] = (),
    is_alone: bool = False,
    stdout: int | IO[str] | None = None,
    stderr: int | None = None,
) -> subprocess.Popen[str]:
    """Start `trainer train` for `spec`, with the options `words`.

    is_alone: whether it trains alone even if this process is one of several.
    """
    from trainer.launch.plan import SPEC
    from trainer.spec import dump_spec

    hidden = PROCESS_VARIABLES if is_alone else ()
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    return subprocess.Popen(
        [sys.executable, "-m", "trainer.cli", "train", *words],
        env={**environment, SPEC: dump_spec(spec)},
        text=True,
        errors="replace",
        preexec_fn=_end_with_parent,
        stdout=stdout,
        stderr=stderr,
    )


def end_of(child: subprocess.Popen[str], work: Callable[[], object]) -> int:
    """Return the exit code of `child` after `work`, which follows it; terminate it on an error or stop."""
    try:
        work()
        child.wait()
    except BaseException:
        child.terminate()
        child.communicate()
        raise
    # As in a shell: 128 plus the number of the signal.
    code = child.returncode
    return code if code >= 0 else _SIGNALLED - code


def error_of_run(name: str, code: int) -> TrainerError:
    """Return the error for a run that ended with `code`, with a remedy."""
    remedy = _REMEDIES.get(code, "See the error above.")
    return error_of(code, f"The run {name} did not finish. {remedy} Received: exit code {code}")


def _end_with_parent() -> None:
    """Have the kernel send SIGTERM to this process when its parent dies, so that it saves and exits."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
