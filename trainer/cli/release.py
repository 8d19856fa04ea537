"""Implementation of `trainer promote`, `trainer rollback` and `trainer runs`."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from trainer.cli.options import examples
from trainer.errors import QualityError, UsageError
from trainer.sanitize import printable, shown_address

if TYPE_CHECKING:
    from trainer.evaluate.metrics import AnyPredictions
    from trainer.release.challenge import Answers, ChallengeResult
    from trainer.release.overview import Row
    from trainer.spec import RunSpec
    from trainer.storage.store import Store

_LOG_SECONDS = 30.0
_WIDTH = 79
_NAME = 28
_WHOLE = 128
_DIGITS = 7
_MINUTE = len("2026-11-27 03:00")


@click.command(
    epilog=examples(
        "trainer promote runs/second",
        "trainer promote runs/second --set publish.test_data=gs://my-bucket/test",
    )
)
@click.argument("run", metavar="RUN")
@click.option("--force", is_flag=True, help="Promote without a significance test.")
@click.option(
    "--set", "settings", metavar="KEY=VALUE", multiple=True,
    help="Change a setting of the decision: --set publish.min_gain=0.01, --set publish.test_data=gs://...",
)  # fmt: skip
def promote(run: str, force: bool, settings: tuple[str, ...]) -> None:
    """Promote a finished run to champion if it is better.

    Both models are evaluated on the same images. Exits with code 4 if the champion stays.
    """
    from trainer.cli.environment import cache_folder
    from trainer.cli.paths import output_of
    from trainer.release.challenge import promote as promote_run
    from trainer.release.challenge import require_finished
    from trainer.release.lock import held

    output, name = output_of(run)
    if force:
        _print_outcome(promote_run(output, name, _say))
        return
    spec = _spec(output, name, settings)
    require_finished(output, name)
    with held(output, name, _say) as lease:
        outcome = challenge_champion(output, name, spec, cache_folder(), lease.require)
    _print_outcome(outcome)
    if not outcome.is_champion:
        refused = "The champion stays" if outcome.stays else "There is still no champion"
        raise QualityError(f"{refused}; --force makes this run the champion all the same.", received=name)


@click.command(epilog=examples("trainer rollback runs", "trainer rollback gs://my-bucket/runs"))
@click.argument("output", metavar="OUTPUT")
def rollback(output: str) -> None:
    """Restore the previous champion."""
    from trainer.release.challenge import rollback as roll_back
    from trainer.storage.store import open_store

    _print_outcome(roll_back(open_store(output), _say))


@click.command(epilog=examples("trainer runs", "trainer runs gs://my-bucket/runs --delete first"))
@click.argument("output", metavar="OUTPUT")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per run.")
def runs(output: str, as_json: bool) -> None:
    """List the runs of an output folder and its champion."""
    from trainer.cli.console import Console
    from trainer.release.overview import overview
    from trainer.report.names import columns, padded, shorten
    from trainer.runs.champion import read_pointer
    from trainer.storage.store import open_store

    place = open_store(output)
    with Console(_LOG_SECONDS, stderr=True) as console:
        rows = overview(place, console)
    # Names can be copied: they are printed whole, even if a line exceeds the terminal width.
    width = max([_NAME, *(columns(shorten(row.name, _WHOLE)) + 1 for row in rows)])
    if not as_json:
        head = f"{'run':<{width}}{'state':<17}{'published':<17}{'data':<8}accuracy"
        click.echo(head if rows else "no runs")
    for row in rows:
        if as_json:
            click.echo(json.dumps(asdict(row), ensure_ascii=False))
            continue
        name, published = padded(shorten(row.name, _WHOLE), width), row.published[:_MINUTE] or "-"
        accuracy = "-" if row.accuracy is None else f"{row.accuracy:.3f}"
        data = row.data[:_DIGITS] or "-"
        click.echo(printable(f"{name}{_state(row):<17}{published:<17}{data:<8}{accuracy}"))
    champion = read_pointer(place).name
    if not as_json and champion and not any(row.is_champion and row.published for row in rows):
        click.echo(
            printable(
                f"The champion {champion} is gone; `trainer rollback` goes back to the one before it, and "
                "`trainer promote RUN --force` names another."
            )
        )


def _say(words: str) -> None:
    click.echo(printable(f"{words}..."), err=True)


def _state(row: Row) -> str:
    words = [row.state, "champion"] if row.is_champion else [row.state]
    if row.is_latest:
        words.append("latest")
    # A champion is finished unless another state is printed.
    return ", ".join(words).removeprefix("finished, ")


def challenge_champion(
    output: Store, name: str, spec: RunSpec, cache_dir: Path, require: Callable[[], None]
) -> ChallengeResult:
    """Challenge the champion with the run `name` of `spec`; see `trainer.release.challenge`."""
    from trainer.release.challenge import challenge

    publish = spec.publish
    return challenge(
        output,
        name,
        publish.min_gain,
        publish.max_class_loss,
        _answers(output, spec, cache_dir),
        require,
        has_test_data=publish.test_data is not None,
    )


def _answers(output: Store, spec: RunSpec, cache_dir: Path) -> Answers:
    def ask(champion: str, challenger: str) -> tuple[AnyPredictions, AnyPredictions, str]:
        from trainer.cli.bootstrap import import_tensorflow
        from trainer.cli.console import Console
        from trainer.cli.paths import local_model

        import_tensorflow()
        from trainer.export import load_model
        from trainer.release.evaluate_pair import answers_of
        from trainer.runs.artifacts import read_published_images

        with Console(_LOG_SECONDS, stderr=True) as console:
            names = (champion, challenger)
            models = [load_model(local_model(output.below(name).uri, cache_dir, console)) for name in names]
            trained = [read_published_images(output.below(name)) for name in names]
            both, said = answers_of(models, spec.data, spec.publish.test_data, cache_dir, console, trained)
        return both[0], both[1], said

    return ask


def _spec(output: Store, name: str, settings: tuple[str, ...]) -> RunSpec:
    from trainer.cli.paths import with_absolute_test_data
    from trainer.spec import load_spec

    found = output.below(name).read("spec.yaml")
    if found is None:
        raise UsageError("There is no such run; give its folder.", received=f"{output.below(name).uri}")
    others = [each for each in settings if not each.startswith("publish.")]
    if others:
        raise UsageError(
            "Only how it is decided can be set here, such as publish.min_gain.",
            received=f"{shown_address(others[0])}",
        )
    return with_absolute_test_data(
        load_spec(None, None, settings, None, found.data.decode("utf-8", "replace"))
    )


def _print_outcome(outcome: ChallengeResult) -> None:
    for line in textwrap.wrap(f"{outcome.said}.", _WIDTH, break_on_hyphens=False):
        click.echo(printable(line))
    if outcome.record:
        click.echo(printable(f"record     {outcome.record}"))
