"""Implementation of `trainer repeat`: one spec trained with several seeds.

Each seed is one run, trained in a separate process; their mean, spread and interval are printed. The run
names are derived from the spec and the seeds, so that the same command resumes where it was stopped.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click

from trainer.cli.compare import print_comparison, read_runs
from trainer.cli.options import SpecCommand, examples, repeat_options
from trainer.cli.several import find_common_start, require_alike, train_apart, unreleased, with_start
from trainer.errors import UsageError
from trainer.shutdown import GracefulShutdown

if TYPE_CHECKING:
    from trainer.spec import RunSpec

_MOST_SEED = 2**31
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
    numbers = _seeds(seeds, times, spec.seed)
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


def _seeds(text: str | None, times: int, first: int) -> list[int]:
    if text is None:
        return list(range(first, first + times))
    words = text.split(",")
    seeds = [int(word) for word in words if re.fullmatch(r" *[0-9]{1,10} *", word)]
    is_distinct = len(set(seeds)) == len(words) >= 2
    if not is_distinct or max(seeds) >= _MOST_SEED:
        raise UsageError(
            "--seeds requires at least two distinct non-negative integers.",
            "Separate them with commas, as in 1,2,3.",
            received=f"{text!r}",
        )
    return seeds
