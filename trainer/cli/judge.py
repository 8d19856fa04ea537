"""What becomes of a run that is published: champion or not, and good enough or not.

In: its folder and spec. Out: lines for the screen; old runs are let go.
"""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

from trainer.cli.console import Console
from trainer.exits import QualityError, StoppedError, TrainerError
from trainer.run_folder import RunFolder
from trainer.spec import RunSpec


def judge(
    folder: RunFolder | None, spec: RunSpec, cache_dir: Path, console: Console, at_least: float | None
) -> None:
    """Ask what a published run, if there is one, is worth, and give it back. Raises QualityError."""
    if folder is None:
        return
    try:
        _challenge(folder, spec, cache_dir, console)
    finally:
        folder.release()  # not before: a schedule's next run would withdraw it while it is judged
    _retire(folder, spec, console)
    _require_accuracy(folder, at_least)


def _challenge(folder: RunFolder, spec: RunSpec, cache_dir: Path, console: Console) -> None:
    """Let the published run challenge the champion, if its spec says so and it didn't before."""
    from trainer.cli.release import challenge_champion
    from trainer.release.held import held
    from trainer.release.records import was_decided

    if not spec.publish.release:
        return
    # Of a run that was finished before, another process may be the one that judges it.
    with nullcontext() if folder.lease else held(folder.output, folder.name, console.say):
        if was_decided(folder.output, folder.name):
            console.on_fact("champion", "decided before; `trainer runs` shows which it is")
            return
        outcome = challenge_champion(folder.output, folder.name, spec, cache_dir)
    where = f"; see {folder.output.at(outcome.record)}" if outcome.record else ""
    console.on_fact("champion", f"{outcome.said}{where}")


def _retire(folder: RunFolder, spec: RunSpec, console: Console) -> None:
    """Let the runs go that publish.keep_runs doesn't keep; that this can't be done ends no run."""
    from trainer.release.retention import keep_newest

    if spec.publish.keep_runs is None:
        return
    try:
        gone = keep_newest(folder.output, spec.publish.keep_runs)
    except StoppedError:
        raise
    except TrainerError as error:
        console.on_message(f"Old runs could not be removed. {error}")
        return
    for what, names in (("retired", gone.retired), ("removed", gone.removed)):
        if names:
            console.on_fact(what, f"by publish.keep_runs: {', '.join(names)}")


def _require_accuracy(folder: RunFolder, at_least: float | None) -> None:
    """Raise QualityError if the run that is published in `folder` is less accurate than was asked for."""
    from trainer.compare.runs import judged_by

    found = None if at_least is None else folder.output.below(folder.name).read("metrics.json")
    if at_least is None or found is None:
        return
    metrics = json.loads(found.data)
    split = judged_by(metrics, folder.at("metrics.json"))
    if (accuracy := metrics[f"{split}/accuracy"]) < at_least:
        raise QualityError(
            "The model is less accurate than was asked for; it is published with its report, which says what "
            f"to try. Received: {split} accuracy {accuracy:.4f}, at least {at_least:g} asked for"
        )
