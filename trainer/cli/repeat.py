"""Implementation of `trainer repeat`: one spec trained with several seeds.

Each seed is one run, trained in a separate process; their mean, spread and interval are printed. The run
names are derived from the spec and the seeds, so that the same command resumes where it was stopped.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import IO, TYPE_CHECKING, Any

import click

from trainer.cli.compare import print_comparison, read_runs
from trainer.cli.options import SpecCommand, examples, repeat_options
from trainer.errors import (
    DataError,
    OutOfMemoryError,
    StoppedError,
    TemporaryError,
    TrainerError,
    UsageError,
    error_of,
)
from trainer.shutdown import GracefulShutdown

if TYPE_CHECKING:
    from trainer.compare.runs import Run
    from trainer.spec import RunSpec

_RESUME = "Run the same command to resume"
_REMEDIES = dict.fromkeys(
    (TrainerError.exit_code, OutOfMemoryError.exit_code, StoppedError.exit_code), f"{_RESUME}."
) | {TemporaryError.exit_code: f"{_RESUME} when the cause above is fixed."}
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
    from trainer.storage import open_store

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
    import ctypes  # loaded before the fork

    from trainer.distributed.process_info import PROCESS_VARIABLES
    from trainer.launch.plan import SPEC
    from trainer.spec import dump_spec

    library = ctypes.CDLL(None)
    hidden = PROCESS_VARIABLES if is_alone else ()
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    return subprocess.Popen(
        [sys.executable, "-m", "trainer.cli", "train", *words],
        env={**environment, SPEC: dump_spec(spec)},
        text=True,
        errors="replace",
        # The kernel sends SIGTERM to the run when this process dies, so that it saves and exits.
        preexec_fn=lambda: library.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM),
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


_SEED_LIMIT = 2**31
_DIGITS = 6


@click.command(
    cls=SpecCommand,
    epilog=examples(
        "trainer repeat --data my_photos --times 5", "trainer repeat my.yaml --seeds 1,2,3 --json"
    ),
)
@repeat_options
@click.option("--times", type=click.IntRange(2, 1000), default=3, show_default=True, help="Number of runs.")
@click.option(
    "--seeds", metavar="N,N,...", help="Seeds of the runs.  [default: the spec's seed and the next ones]"
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
def repeat(times: int, seeds: str | None, as_json: bool, **options: Any) -> None:
    """Train a spec with several seeds and report the spread.

    The same command resumes where it was stopped. The runs are not promoted; use `trainer promote`.
    """
    from trainer.cli.config import load_run_spec
    from trainer.cli.environment import cache_folder
    from trainer.compare.comparison import compare_runs

    overrides = {"data.source": options["data"], "output": options["output"], "run_name": options["run_name"]}
    spec = load_run_spec(
        options["spec_path"], options["recipe"], options["settings"], overrides, None, cache_folder()
    )
    shutdown = GracefulShutdown(spec.train.grace_seconds + 5)
    shutdown.install()
    spec = with_start(spec, find_common_start(spec, "the seed"))
    numbers = _parse_seeds(seeds, times, spec.seed)
    base = spec.run_name or f"{spec.recipe or 'run'}-{_identity(spec)}"
    specs = [_with_seed(spec, f"{base}-seed-{number}", number) for number in numbers]
    for seeded in specs:
        click.echo(f"seed {seeded.seed}", err=as_json)
        train_apart(seeded, quiet=as_json)
    runs = read_runs([f"{spec.output.rstrip('/')}/{seeded.run_name}" for seeded in specs])
    require_alike(runs)
    print_comparison(runs, [compare_runs(*runs)] if len(runs) == 2 else [], as_json, is_spread=True)


def _with_seed(spec: RunSpec, name: str, seed: int) -> RunSpec:
    """Return the spec of one run, validated before the first run starts. Raises UsageError."""
    from trainer.spec import dump_spec, load_spec

    text = dump_spec(unreleased(spec))
    return load_spec(text=text, overrides={"run_name": name, "seed": seed})


def _identity(spec: RunSpec) -> str:
    """Return a hash prefix that identifies the spec, independent of its seed and run name."""
    from trainer.spec import spec_digest

    return spec_digest(spec.model_copy(update={"seed": 0, "run_name": None}))[:_DIGITS]


def _parse_seeds(text: str | None, times: int, first: int) -> list[int]:
    if text is None:
        return list(range(first, first + times))
    words = text.split(",")
    seeds = [int(word) for word in words if re.fullmatch(r" *[0-9]{1,10} *", word)]
    is_distinct = len(set(seeds)) == len(words) >= 2
    if not is_distinct or max(seeds) >= _SEED_LIMIT:
        raise UsageError(
            "--seeds requires at least two distinct integers from 0 to 2147483647.",
            "Separate them with commas, as in 1,2,3.",
            received=f"{text!r}",
        )
    return seeds
