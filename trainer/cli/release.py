"""Implementation of `trainer promote`, `trainer rollback` and `trainer runs`."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from trainer.cli.options import examples
from trainer.errors import QualityError, UsageError
from trainer.sanitize import printable, shown_address

if TYPE_CHECKING:
    from trainer.evaluate.metrics import AnyPredictions
    from trainer.release.challenge import ChallengeResult, PredictPair
    from trainer.release.overview import Row
    from trainer.spec import RunSpec
    from trainer.storage.store import Store

_LOG_SECONDS = 30.0
_WIDTH = 79
_MAX_NAME = 128
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
    from trainer.release.retention import run_lease

    output, name = output_of(run)
    if force:
        _print_outcome(promote_run(output, name, _print_wait))
        return
    spec = _spec(output, name, settings)
    require_finished(output, name)
    with run_lease(output, name, _print_wait) as lease:
        outcome = challenge_champion(output, name, spec, cache_folder(), lease.require)
    _print_outcome(outcome)
    if not outcome.is_champion:
        raise QualityError(
            "The champion was not replaced." if outcome.kept_champion else "There is still no champion.",
            "Use --force to promote this run without a test.",
            received=name,
        )


@click.command(epilog=examples("trainer rollback runs", "trainer rollback gs://my-bucket/runs"))
@click.argument("output", metavar="OUTPUT")
def rollback(output: str) -> None:
    """Restore the previous champion."""
    from trainer.release.challenge import rollback as roll_back
    from trainer.storage import open_store

    _print_outcome(roll_back(open_store(output), _print_wait))


@click.command(epilog=examples("trainer runs", "trainer runs gs://my-bucket/runs --delete first"))
@click.argument("output", metavar="[OUTPUT]", default="runs", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per run.")
@click.option(
    "--delete", "name", metavar="NAME", help="Delete a run instead of listing runs. Asks for confirmation."
)
@click.option("--yes", "is_confirmed", is_flag=True, help="Do not ask for confirmation.")
def runs(output: str, as_json: bool, name: str | None, is_confirmed: bool) -> None:
    """List the runs of an output folder and its champion.

    OUTPUT is a folder or gs:// URI.  [default: runs]
    """
    if not output:
        raise UsageError("The name of the output is empty.", "Give a folder or a gs:// URI.", received="''")
    from trainer.cli.console import Console
    from trainer.release.overview import overview
    from trainer.runs.champion import read_pointer
    from trainer.storage import open_store

    if is_confirmed and name is None:
        raise UsageError("--yes requires --delete.", "Use --delete NAME --yes.")
    if as_json and name is not None:
        raise UsageError("--json cannot be combined with --delete.", "Use one of them.")
    store = open_store(output)
    if name is not None:
        _delete(store, name, is_confirmed)
        return
    with Console(_LOG_SECONDS, stderr=True) as console:
        rows = overview(store, console)
    if not rows:
        _require_output(store)
    if as_json:
        for row in rows:
            click.echo(json.dumps(asdict(row), ensure_ascii=False))
        return
    for line in _table(rows) if rows else ["no runs"]:
        click.echo(printable(line))
    champion = read_pointer(store).name
    if champion and not any(row.is_champion and row.published for row in rows):
        click.echo(
            printable(
                f"The champion {champion} does not exist any more. Restore the previous one with `trainer "
                "rollback`, or promote another run with `trainer promote RUN --force`."
            )
        )


def _require_output(store: Store) -> None:
    """Raise UsageError unless the output of runs exists: a folder, or any object in a bucket."""
    from trainer.storage.folder import FolderStore

    exists = store.root.is_dir() if isinstance(store, FolderStore) else bool(store.entries())
    if not exists:
        raise UsageError("There is no such output folder.", "Check the path.", received=store.uri)
    if store.find("spec.yaml") is not None:
        raise UsageError(
            "This is a run, and not an output of runs.", "Give the folder above it.", received=store.uri
        )


def _table(rows: Sequence[Row]) -> list[str]:
    """Return the lines of the table; names are whole, so that they can be copied."""
    from trainer.report.names import columns, format_duration, padded, shorten

    cells = [
        ("run", "state", "recipe", "epochs", "accuracy", "gap", "time", "published", "data"),
        *(
            (
                shorten(row.name, _MAX_NAME),
                _state(row),
                row.recipe or "-",
                str(row.epochs or "-"),
                "-" if row.accuracy is None else f"{row.accuracy:.3f}",
                "-" if row.gap is None else f"{row.gap:.3f}",
                "-" if row.seconds is None else format_duration(row.seconds),
                row.published[:_MINUTE] or "-",
                row.data[:_DIGITS] or "-",
            )
            for row in rows
        ),
    ]
    widths = [max(columns(line[column]) for line in cells) for column in range(len(cells[0]))]
    return [
        "  ".join(padded(text, width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    ]


def _delete(output: Store, name: str, is_confirmed: bool) -> None:
    """Delete a run after a confirmation. Raises UsageError, TemporaryError."""
    from trainer.release.retention import delete_run, require_removable
    from trainer.spec.schema import RUN_NAME

    if not re.fullmatch(RUN_NAME, name):
        raise UsageError("This is not the name of a run.", "Set --delete to a name in OUTPUT.", received=name)
    require_removable(output, name)
    uri = output.below(name).uri
    try:
        if not is_confirmed and not click.confirm(f"Delete {shown_address(uri)}?"):
            raise click.Abort
    except click.Abort:
        raise UsageError(
            "Nothing was deleted.", "Use --yes to delete without confirmation.", received="no"
        ) from None
    delete_run(output, name, _print_wait)
    click.echo(printable(f"deleted    {uri}"))


def _print_wait(message: str) -> None:
    click.echo(printable(f"{message}..."), err=True)


def _state(row: Row) -> str:
    states = [row.state, "champion"] if row.is_champion else [row.state]
    if row.is_latest:
        states.append("latest")
    # A champion is finished unless another state is printed.
    return ", ".join(states).removeprefix("finished, ")


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


def _answers(output: Store, spec: RunSpec, cache_dir: Path) -> PredictPair:
    def predict_pair(champion: str, challenger: str) -> tuple[AnyPredictions, AnyPredictions, str]:
        from trainer.cli.bootstrap import import_tensorflow
        from trainer.cli.console import Console
        from trainer.cli.paths import local_model

        import_tensorflow()
        from trainer.export import load_model
        from trainer.release.evaluate_pair import predict_same_images
        from trainer.runs.artifacts import read_published_images

        with Console(_LOG_SECONDS, stderr=True) as console:
            names = (champion, challenger)
            models = [load_model(local_model(output.below(name).uri, cache_dir, console)) for name in names]
            trained = [read_published_images(output.below(name)) for name in names]
            both, images = predict_same_images(
                models, spec.data, spec.publish.test_data, cache_dir, console, trained
            )
        return both[0], both[1], images

    return predict_pair


def _spec(output: Store, name: str, settings: tuple[str, ...]) -> RunSpec:
    from trainer.cli.paths import with_absolute_test_data
    from trainer.spec import load_spec

    content = output.below(name).read("spec.yaml")
    if content is None:
        raise UsageError("There is no such run.", "Check the path.", received=output.below(name).uri)
    others = [setting for setting in settings if not setting.startswith("publish.")]
    if others:
        raise UsageError(
            "--set accepts only settings of the decision for this command.",
            "Set publish.min_gain, publish.max_class_loss or publish.test_data.",
            received=shown_address(others[0]),
        )
    return with_absolute_test_data(
        load_spec(None, None, settings, None, content.data.decode("utf-8", "replace"))
    )


def _print_outcome(outcome: ChallengeResult) -> None:
    for line in textwrap.wrap(f"{outcome.message}.", _WIDTH, break_on_hyphens=False):
        click.echo(printable(line))
    if outcome.record:
        click.echo(printable(f"record     {outcome.record}"))
