"""Post-training gates of a published run: minimum accuracy, champion challenge, retention."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from trainer.cli.console import Console
from trainer.cli.paths import program
from trainer.errors import DataError, QualityError, StoppedError, TrainerError
from trainer.runs import RunFolder
from trainer.shutdown import GracefulShutdown
from trainer.spec import RunSpec
from trainer.storage.store import read_object


def judge(
    folder: RunFolder | None,
    spec: RunSpec,
    cache_dir: Path,
    console: Console,
    stop: GracefulShutdown,
    at_least: float | None,
) -> None:
    """Run the post-training gates, then release the lease and retire old runs. Raises QualityError.

    A run below the accuracy `at_least` does not challenge the champion. `folder` is None on a worker.
    """
    if folder is None:
        return
    missed = None
    is_asked = at_least is not None or spec.publish.release
    try:
        # Without a gate, a signal must not make a finished run exit as a stopped one.
        with _hearing(stop, folder) if is_asked else nullcontext():
            missed = None if at_least is None else _missed(folder, at_least)
            if spec.publish.release:
                _challenge(folder, spec, cache_dir, console, missed)
    finally:
        folder.release()  # not before: the next scheduled run could retire this one
        if spec.publish.keep_runs is not None and not stop.is_requested():
            with _hearing(stop, folder):
                _retire(folder, spec.publish.keep_runs, console)
    if missed is not None:
        raise QualityError(missed)


@contextmanager
def _hearing(stop: GracefulShutdown, folder: RunFolder) -> Iterator[None]:
    """Let a signal stop the block, which may take long; the gates of the run can be run again."""
    try:
        with stop.handling_signals():
            yield
    except StoppedError as error:
        again = f"{program()} train {shlex.quote(folder.at('spec.yaml'))}"
        raise StoppedError(f"{error} The run is published; judge it with: {again}") from None


def _challenge(
    folder: RunFolder, spec: RunSpec, cache_dir: Path, console: Console, missed: str | None
) -> None:
    """Challenge the champion with the published run, unless it is too inaccurate or already decided."""
    from trainer.cli.release import challenge_champion
    from trainer.release.audit_log import was_decided
    from trainer.release.lock import run_lease, run_lease_if_free

    if missed is not None:
        console.on_fact("champion", "not challenged, as the run is less accurate than was asked for")
        return
    outcome = None
    if not was_decided(folder.output, folder.name):
        # Another process may be judging a run that was already finished. Wait for its lease only if the spec
        # names this run, and not for an earlier run with equal data and spec.
        place = folder.output, folder.name
        is_own = spec.run_name == folder.name
        hold = run_lease(*place, console.say) if is_own else run_lease_if_free(*place, console.say)
        with hold if folder.lease is None else nullcontext(folder.lease) as lease:
            if lease is None:
                console.on_fact("champion", "another process judges this run")
                return
            if not was_decided(*place):
                outcome = challenge_champion(*place, spec, cache_dir, lease.require)
    if outcome is None:
        console.on_fact("champion", "decided before; `trainer runs` shows which it is")
        return
    where = f"; see {folder.output.at(outcome.record)}" if outcome.record else ""
    console.on_fact("champion", f"{outcome.message}{where}")


def _retire(folder: RunFolder, count: int, console: Console) -> None:
    """Retire the runs beyond publish.keep_runs; a failure is printed and does not fail the run."""
    from trainer.release.retention import keep_newest

    try:
        gone = keep_newest(folder.output, count, on_wait=console.say)
    except StoppedError:
        raise
    except TrainerError as error:
        console.on_message(f"Old runs could not be removed. {error}")
        return
    for what, names in (("retired", gone.retired), ("removed", gone.removed)):
        if names:
            console.on_fact(what, f"by publish.keep_runs: {', '.join(names)}")
    if gone.problems:
        more = f" And so with {len(gone.problems) - 1} more." if len(gone.problems) > 1 else ""
        console.on_message(f"An old run could not be removed. {gone.problems[0]}{more}")


def _missed(folder: RunFolder, at_least: float) -> str | None:
    """Return a message if the published run is less accurate than `at_least`, or else None.

    Exact copies of training images are excluded. Raises DataError if the accuracy is unknown.
    """
    split, accuracy, copies = _accuracy(folder)
    if accuracy >= at_least:
        return None
    without = f" without {copies} exact copies of training images" if copies else ""
    return (
        "The model is less accurate than was asked for; it is published with its report, which says what to "
        f"try. Received: {split} accuracy {accuracy:.4f}{without}, at least {at_least:g} asked for"
    )


def _accuracy(folder: RunFolder) -> tuple[str, float, int]:
    """Return the held-out split, its accuracy, and the number of excluded copies. Raises DataError."""
    from trainer.runs.marker import HELD_OUT

    run = folder.output.below(folder.name)
    metrics = read_object(run, "metrics.json")
    split = next((each for each in HELD_OUT if f"{each}/accuracy" in metrics), HELD_OUT[0])
    accuracy = metrics.get(f"{split}/accuracy")
    if not isinstance(accuracy, float | int) or not 0 <= accuracy <= 1:
        raise DataError(
            "Nobody can tell whether the model is as good as was asked for, as its metrics can't be read; "
            "`trainer verify` tells what is wrong with the run.",
            received=f"{folder.at('metrics.json')}",
        )
    if not read_object(run, "dataset.json").get("duplicates_across_splits", {}).get("count"):
        return split, float(accuracy), 0
    from trainer.release.stored_predictions import read_stored_predictions
    from trainer.report.case import score_of

    own = read_stored_predictions(run)
    if own is None or not own[1]:
        return split, float(accuracy), 0
    if not len(own[0].labels):
        raise DataError(
            "Nobody can tell whether the model is as good as was asked for, as all its held-out images are "
            "exact copies of training images; hold out others.",
            received=f"{folder.at('dataset.json')}",
        )
    return split, score_of(own[0]).share, own[1]
