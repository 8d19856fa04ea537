"""`trainer repeat`: the same spec with several seeds, and what came of it.

In: a spec and how often. Out: a run a seed, each by a process of its own, and their mean, spread and
interval. The names of the runs follow from the spec and the seeds, so that the same command goes on where it
was stopped.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import click

from trainer.cli.compare import read_runs, tell
from trainer.cli.options import SpecCommand, repeat_options
from trainer.exits import StoppedError, UsageError, error_of
from trainer.stop import Stop

if TYPE_CHECKING:
    from trainer.spec import RunSpec

_MOST_SEED = 2**31
_DIGITS = 6
_GOES_ON = (1, 75, 137, 143)
"""Exit codes of what the next start may get over."""


@click.command(cls=SpecCommand)
@repeat_options
@click.option("--times", type=click.IntRange(2, 1000), default=3, show_default=True, help="How many runs.")
@click.option("--seeds", metavar="N,N,...", help="Their seeds.  [default: from the spec's own on]")
@click.option("--json", "as_json", is_flag=True, help="What came of it as one JSON object.")
def repeat(times: int, seeds: str | None, as_json: bool, **given: Any) -> None:
    """Train a spec with several seeds, and tell mean, spread and interval.

    Stopped and started again it goes on; runs that are finished are not done again.
    """
    from trainer.cli.app import cache_folder
    from trainer.cli.given import given_spec
    from trainer.compare.comparison import compare_runs

    overrides = {"data.source": given["data"], "output": given["output"], "run_name": given["run_name"]}
    spec = given_spec(given["spec_path"], given["recipe"], given["settings"], overrides, None, cache_folder())
    stop = Stop(spec.train.grace_seconds + 5)
    stop.listen()
    numbers = _seeds(seeds, times, spec.seed)
    base = spec.run_name or f"{spec.recipe or 'run'}-{_identity(spec)}"
    names = [f"{base}-seed-{number}" for number in numbers]
    for name, number in zip(names, numbers, strict=True):
        click.echo(f"seed {number}", err=as_json)
        _train(spec.model_copy(update={"run_name": name, "seed": number}), quiet=as_json)
    runs = read_runs([f"{spec.output.rstrip('/')}/{name}" for name in names])
    tell(runs, [compare_runs(*runs)] if len(runs) == 2 else [], as_json)


def _identity(spec: RunSpec) -> str:
    """Return some digits that are others for another spec, whatever its seed."""
    from trainer.spec import spec_digest

    return spec_digest(spec.model_copy(update={"seed": 0, "run_name": None}))[:_DIGITS]


def _seeds(text: str | None, times: int, first: int) -> list[int]:
    if text is None:
        return list(range(first, first + times))
    try:
        seeds = [int(each) for each in text.split(",")]
    except ValueError:
        seeds = []
    if len(set(seeds)) != len(seeds) or len(seeds) < 2 or not all(0 <= each < _MOST_SEED for each in seeds):
        raise UsageError(
            f"--seeds has two or more numbers from 0 up, each once, as 1,2,3. Received: {text!r}"
        )
    return seeds


def _train(spec: RunSpec, quiet: bool) -> None:
    """Do one run in a process of its own; a stop is handed on. Raises what it ended with."""
    from trainer.launch.plan import SPEC
    from trainer.spec import dump_spec

    child = subprocess.Popen(
        [sys.executable, "-m", "trainer.cli", "train"],
        env={**os.environ, SPEC: dump_spec(spec)},
        # Its lines are for a person, and what this program prints then for a program.
        stdout=sys.stderr if quiet else None,
    )
    try:
        child.wait()
    except StoppedError:
        child.terminate()
        child.wait()
        raise
    if child.returncode:
        again = "; the same command goes on with it" if child.returncode in _GOES_ON else ", see above why"
        raise error_of(
            child.returncode,
            f"The run {spec.run_name} did not finish{again}. Received: exit code {child.returncode}",
        )
