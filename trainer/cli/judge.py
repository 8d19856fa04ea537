"""What becomes of a run that is published: champion or not, and good enough or not.

In: its folder and spec. Out: lines for the screen; old runs are let go.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

from trainer.cli.console import Console
from trainer.exits import DataError, QualityError, StoppedError, TrainerError
from trainer.run_folder import RunFolder
from trainer.spec import RunSpec
from trainer.stop import Stop
from trainer.storage.objects import read_object


def judge(
    folder: RunFolder | None,
    spec: RunSpec,
    cache_dir: Path,
    console: Console,
    stop: Stop,
    at_least: float | None,
) -> None:
    """Ask what a published run, if there is one, is worth, and give it back. Raises QualityError.

    One that is not as good as was asked for is no challenger.
    """
    if folder is None:
        return
    with stop.listening():
        try:
            missed = None if at_least is None else _missed(folder, at_least)
            if missed is None:
                _challenge(folder, spec, cache_dir, console)
        finally:
            folder.release()  # not before: a schedule's next run would withdraw it while it is judged
            if not stop.is_requested():
                _retire(folder, spec, console)
    if missed is not None:
        raise QualityError(missed)


def _challenge(folder: RunFolder, spec: RunSpec, cache_dir: Path, console: Console) -> None:
    """Let the published run challenge the champion, if its spec says so and it didn't before."""
    from trainer.cli.release import challenge_champion
    from trainer.release.held import held
    from trainer.release.records import was_decided

    if not spec.publish.release:
        return
    outcome = None
    if not was_decided(folder.output, folder.name):
        # Of a run that was finished before, another process may be the one that judges it.
        own = None if folder.lease is None else nullcontext(folder.lease)
        with own or held(folder.output, folder.name, console.say) as lease:
            if not was_decided(folder.output, folder.name):
                outcome = challenge_champion(folder.output, folder.name, spec, cache_dir, lease.require)
    if outcome is None:
        console.on_fact("champion", "decided before; `trainer runs` shows which it is")
        return
    where = f"; see {folder.output.at(outcome.record)}" if outcome.record else ""
    console.on_fact("champion", f"{outcome.said}{where}")


def _retire(folder: RunFolder, spec: RunSpec, console: Console) -> None:
    """Let the runs go that publish.keep_runs doesn't keep; that this can't be done ends no run."""
    from trainer.release.retention import keep_newest

    if spec.publish.keep_runs is None:
        return
    try:
        gone = keep_newest(folder.output, spec.publish.keep_runs, on_wait=console.say)
    except StoppedError:
        raise
    except TrainerError as error:
        console.on_message(f"Old runs could not be removed. {error}")
        return
    for what, names in (("retired", gone.retired), ("removed", gone.removed)):
        if names:
            console.on_fact(what, f"by publish.keep_runs: {', '.join(names)}")
    for problem in gone.problems:
        console.on_message(f"An old run could not be removed. {problem}")


def _missed(folder: RunFolder, at_least: float) -> str | None:
    """Say by what the published run is less accurate than was asked for; None if it isn't.

    Raises DataError if nobody can tell.
    """
    from trainer.compare.runs import HELD_OUT

    metrics = read_object(folder.output.below(folder.name), "metrics.json")
    split = next((each for each in HELD_OUT if f"{each}/accuracy" in metrics), HELD_OUT[0])
    accuracy = metrics.get(f"{split}/accuracy")
    if not isinstance(accuracy, float | int) or not 0 <= accuracy <= 1:
        raise DataError(
            "Nobody can tell whether the model is as good as was asked for, as its metrics can't be read; "
            f"`trainer verify` tells what is wrong with the run. Received: {folder.at('metrics.json')}"
        )
    if accuracy >= at_least:
        return None
    return (
        "The model is less accurate than was asked for; it is published with its report, which says what to "
        f"try. Received: {split} accuracy {accuracy:.4f}, at least {at_least:g} asked for"
    )
