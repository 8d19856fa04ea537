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


def run_gates(
    folder: RunFolder | None,
    spec: RunSpec,
    cache_dir: Path,
    console: Console,
    shutdown: GracefulShutdown,
    min_accuracy: float | None,
) -> None:
    """Run the post-training gates, then release the lease and retire old runs. Raises QualityError.

    A run below the accuracy `min_accuracy` does not challenge the champion. `folder` is None on a worker.
    """
    if folder is None:
        return
    failure = None
    has_gate = min_accuracy is not None or spec.publish.release
    try:
        # Without a gate, a signal must not make a finished run exit as a stopped one.
        with _stoppable(shutdown, folder) if has_gate else nullcontext():
            failure = None if min_accuracy is None else _accuracy_failure(folder, min_accuracy)
            if spec.publish.release:
                _challenge(folder, spec, cache_dir, console, is_accurate=failure is None)
    finally:
        folder.release()  # not before: the next scheduled run could retire this one
        if spec.publish.keep_runs is not None and not shutdown.is_requested():
            with _stoppable(shutdown, folder):
                _retire(folder, spec.publish.keep_runs, console)
    if failure is not None:
        raise failure


@contextmanager
def _stoppable(shutdown: GracefulShutdown, folder: RunFolder) -> Iterator[None]:
    """Let a signal stop the block, which may take long; the gates of the run can be run again."""
    try:
        with shutdown.handling_signals():
            yield
    except StoppedError as error:
        command = f"{program()} train {shlex.quote(folder.at('spec.yaml'))}"
        raise StoppedError(f"{error} The run is published.", f"Repeat the gates with: {command}") from None


def _challenge(
    folder: RunFolder, spec: RunSpec, cache_dir: Path, console: Console, is_accurate: bool
) -> None:
    """Challenge the champion with the published run, unless it is too inaccurate or already decided."""
    from trainer.cli.release import challenge_champion
    from trainer.release.audit_log import was_decided
    from trainer.release.retention import run_lease, run_lease_if_free

    if not is_accurate:
        console.on_fact("champion", "not challenged: the run is below the required accuracy")
        return
    outcome = None
    if not was_decided(folder.output, folder.name):
        # Another process may be challenging with a run that was already finished. Wait for its lease only if
        # the spec names this run, and not for an earlier run with equal data and spec.
        run = folder.output, folder.name
        is_own = spec.run_name == folder.name
        hold = run_lease(*run, console.on_message) if is_own else run_lease_if_free(*run, console.on_message)
        with hold if folder.lease is None else nullcontext(folder.lease) as lease:
            if lease is None:
                console.on_fact("champion", "another process is challenging the champion with this run")
                return
            if not was_decided(*run):
                outcome = challenge_champion(*run, spec, cache_dir, lease.require)
    if outcome is None:
        console.on_fact("champion", "decided earlier; `trainer runs` shows the champion")
        return
    where = f"; see {folder.output.at(outcome.record)}" if outcome.record else ""
    console.on_fact("champion", f"{outcome.message}{where}")


def _retire(folder: RunFolder, count: int, console: Console) -> None:
    """Retire the runs beyond publish.keep_runs; a failure is printed and does not fail the run."""
    from trainer.release.retention import keep_newest

    try:
        gone = keep_newest(folder.output, count, on_wait=console.on_message)
    except StoppedError:
        raise
    except TrainerError as error:
        console.on_message(f"Old runs could not be removed. {error}")
        return
    for label, names in (("retired", gone.retired), ("removed", gone.removed)):
        if names:
            console.on_fact(label, f"by publish.keep_runs: {', '.join(names)}")
    if gone.problems:
        others = len(gone.problems) - 1
        more = f" The same applies to {others} more." if others else ""
        console.on_message(f"An old run could not be removed. {gone.problems[0]}{more}")


def _accuracy_failure(folder: RunFolder, min_accuracy: float) -> QualityError | None:
    """Return the error for a published run that is less accurate than `min_accuracy`, or else None.

    Exact copies of training images are excluded. Raises DataError if the accuracy is unknown.
    """
    split, accuracy, copies = _accuracy(folder)
    if accuracy >= min_accuracy:
        return None
    without = f" without {copies} exact copies of training images" if copies else ""
    return QualityError(
        "The model is less accurate than required. The run is published.",
        "See its report for settings to try.",
        received=f"{split} accuracy {accuracy:.4f}{without}, at least {min_accuracy:g} required",
    )


def _accuracy(folder: RunFolder) -> tuple[str, float, int]:
    """Return the held-out split, its accuracy, and the number of excluded copies. Raises DataError."""
    from trainer.runs.marker import HELD_OUT

    run = folder.output.below(folder.name)
    metrics = read_object(run, "metrics.json")
    split = next((name for name in HELD_OUT if f"{name}/accuracy" in metrics), HELD_OUT[0])
    accuracy = metrics.get(f"{split}/accuracy")
    if not isinstance(accuracy, float | int) or not 0 <= accuracy <= 1:
        raise DataError(
            "The accuracy of the run is unknown: its metrics cannot be read.",
            "Run `trainer verify` to see what is wrong with the run.",
            received=folder.at("metrics.json"),
        )
    if not read_object(run, "dataset.json").get("duplicates_across_splits", {}).get("count"):
        return split, float(accuracy), 0
    from trainer.release.challenge import read_stored_predictions
    from trainer.report.case import score_of

    own = read_stored_predictions(run)
    if own is None or not own[1]:
        return split, float(accuracy), 0
    if not len(own[0].labels):
        raise DataError(
            "The accuracy of the run is unknown: all held-out images are exact copies of training images.",
            "Hold out other images.",
            received=folder.at("dataset.json"),
        )
    return split, score_of(own[0]).share, own[1]
