"""`trainer repeat`: the same spec with several seeds, and what came of it.

In: a spec and how often. Out: a run a seed, each by a process of its own, and their mean, spread and
interval. The names of the runs follow from the spec and the seeds, so that the same command goes on where it
was stopped.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from trainer.cli.compare import read_runs, tell
from trainer.cli.options import SpecCommand, repeat_options
from trainer.exits import DataError, StoppedError, UsageError, error_of
from trainer.stop import Stop

if TYPE_CHECKING:
    from trainer.compare.runs import Run
    from trainer.spec import RunSpec

_MOST_SEED = 2**31
_DIGITS = 6
_GOES_ON = "; the same command goes on with it"
_SAID = dict.fromkeys((1, 137, 143), _GOES_ON) | {75: f"; once what is said above is over,{_GOES_ON[1:]}"}
"""What to do after an exit code that the next start may get over."""
_SIGNALLED = 128


@click.command(cls=SpecCommand)
@repeat_options
@click.option("--times", type=click.IntRange(2, 1000), default=3, show_default=True, help="How many runs.")
@click.option("--seeds", metavar="N,N,...", help="Their seeds.  [default: from the spec's own on]")
@click.option("--json", "as_json", is_flag=True, help="What came of it as one JSON object.")
def repeat(times: int, seeds: str | None, as_json: bool, **given: Any) -> None:
    """Train a spec with several seeds, and tell mean, spread and interval.

    Stopped and started again it goes on; runs that are finished are not done again. None of them
    challenges the champion; `trainer promote` lets one.
    """
    from trainer.cli.app import cache_folder
    from trainer.cli.given import given_spec
    from trainer.compare.comparison import compare_runs

    overrides = {"data.source": given["data"], "output": given["output"], "run_name": given["run_name"]}
    spec = given_spec(given["spec_path"], given["recipe"], given["settings"], overrides, None, cache_folder())
    stop = Stop(spec.train.grace_seconds + 5)
    stop.listen()
    spec = _with_start(spec)
    numbers = _seeds(seeds, times, spec.seed)
    base = spec.run_name or f"{spec.recipe or 'run'}-{_identity(spec)}"
    specs = [_with_seed(spec, f"{base}-seed-{number}", number) for number in numbers]
    for each in specs:
        click.echo(f"seed {each.seed}", err=as_json)
        _train(each, quiet=as_json)
    runs = read_runs([f"{spec.output.rstrip('/')}/{each.run_name}" for each in specs])
    require_alike(runs)
    tell(runs, [compare_runs(*runs)] if len(runs) == 2 else [], as_json, is_spread=True)


def _with_seed(spec: RunSpec, name: str, seed: int) -> RunSpec:
    """Return the spec of one run, checked before the first one begins. Raises UsageError."""
    from trainer.spec import dump_spec, load_spec

    # Each is wanted, whether it is new or not, and all of them at the end; and the best of several that are
    # equally good would take the champion's place more often than chance may.
    publish = spec.publish.model_copy(update={"skip_unchanged": False, "keep_runs": None, "release": False})
    text = dump_spec(spec.model_copy(update={"publish": publish}))
    return load_spec(text=text, overrides={"run_name": name, "seed": seed})


def _with_start(spec: RunSpec) -> RunSpec:
    """Return the spec with the run that all begin with, whatever becomes the champion meanwhile."""
    from trainer.cli.places import absolute_source
    from trainer.publish import parent_of
    from trainer.run_folder import find_start
    from trainer.spec.schema import LATEST, SCRATCH
    from trainer.storage.store import open_store

    start_from = spec.train.start_from
    if parent_of(start_from)[1] == LATEST:
        raise UsageError(
            "Each of these runs would begin with the weights of the one before, and so differ in more than "
            f"the seed; give a run, or champion. Received: train.start_from={start_from}"
        )
    start = find_start(open_store(spec.output), start_from)
    # The names of the runs follow from it, from whatever folder the command is given.
    place = SCRATCH if start is None else absolute_source(start.uri)
    return spec.model_copy(update={"train": spec.train.model_copy(update={"start_from": place})})


def require_alike(runs: Sequence[Run]) -> None:
    """Raise DataError for runs that are not of one data set, or didn't begin with the same weights."""
    for what, found in (
        ("data", [run.dataset.get("digest") for run in runs]),
        ("weights that they begin with", [run.environment.get("started_from") for run in runs]),
    ):
        other = next((run.name for run, each in zip(runs, found, strict=True) if each != found[0]), None)
        if other is not None:
            raise DataError(
                f"The {what} changed since the first of these runs, so they differ in more than the seed; "
                f"with another --run-name all of them begin anew. Received: {runs[0].name} and {other}"
            )


def _identity(spec: RunSpec) -> str:
    """Return some digits that are others for another spec, whatever its seed."""
    from trainer.spec import spec_digest

    return spec_digest(spec.model_copy(update={"seed": 0, "run_name": None}))[:_DIGITS]


def _seeds(text: str | None, times: int, first: int) -> list[int]:
    if text is None:
        return list(range(first, first + times))
    words = text.split(",")
    seeds = [int(each) for each in words if re.fullmatch(r" *[0-9]{1,10} *", each)]
    is_each_once = len(set(seeds)) == len(words) >= 2
    if not is_each_once or max(seeds) >= _MOST_SEED:
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
    # What a signal ended has the code that a shell gives it.
    code = child.returncode if child.returncode >= 0 else _SIGNALLED - child.returncode
    if code:
        again = _SAID.get(code, ", see above why")
        raise error_of(code, f"The run {spec.run_name} did not finish{again}. Received: exit code {code}")
