"""Challenge, promotion and rollback of the champion.

A challenge writes an audit record whether or not the challenger wins, and moves the champion pointer if it
does. If two runs challenge at the same time, the second one is compared with the winner.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from trainer.errors import TemporaryError, UsageError
from trainer.evaluate.metrics import AnyPredictions
from trainer.evaluate.prediction_files import parse_predictions, storable
from trainer.release.audit_log import CHALLENGE, ROLLBACK, UNDONE, earlier_champions, write_record
from trainer.release.decision import Decision, decide, why_guessing
from trainer.release.retention import restore_run
from trainer.report.case import copied_names
from trainer.report.names import format_count
from trainer.runs import require_not_withdrawn
from trainer.runs.champion import Champion, read_champion, read_pointer, restore_champion, swap_champion
from trainer.runs.marker import HELD_OUT
from trainer.runs.publish import is_finished, published_files, require_as_published
from trainer.storage.store import Store, read_object


def read_stored_predictions(run: Store) -> tuple[AnyPredictions, int] | None:
    """Return the stored held-out predictions and the number of exact copies of training images left out.

    None if the run has no stored predictions. The predictions may be empty.
    """
    content = run.read("predictions.csv")
    if content is None:
        return None
    predictions = parse_predictions(content.data.decode("utf-8", "replace"), run.at("predictions.csv"))
    by_split = {part.split: part for part in predictions}
    held_out = next((by_split[split] for split in HELD_OUT if split in by_split), None)
    if held_out is None:
        return None
    dataset = read_object(run, "dataset.json")
    copies = {storable(name) for name in copied_names(dataset, held_out.split)}
    originals = np.flatnonzero([name not in copies for name in held_out.names])
    return held_out.select(originals), len(held_out.names) - len(originals)


PredictPair = Callable[[str, str], tuple[AnyPredictions, AnyPredictions, str]]
"""(champion name, challenger name) -> predictions of both for the same images, and which images these are."""


@dataclass(frozen=True)
class ChallengeResult:
    """Result of a challenge, promotion or rollback."""

    is_champion: bool
    """Whether the run is the champion now."""
    message: str
    """Result as a sentence."""
    record: str
    """Name of the audit record; empty if the run was the champion already."""
    kept_champion: str = ""
    """Champion that was not replaced; empty if there is none."""


def challenge(
    output: Store,
    name: str,
    min_gain: float,
    max_class_loss: float,
    predict_pair: PredictPair,
    require: Callable[[], None] = lambda: None,
    has_test_data: bool = False,
) -> ChallengeResult:
    """Make the finished run `name` the champion if it is better; without a champion it must beat guessing.

    has_test_data: whether `predict_pair` predicts other images than the run's held-out ones; a first champion
    must then beat guessing on those. `require` is called before each write; it raises if another process has
    taken over. Raises UsageError for an unfinished or missing run, DataError for changed files.
    """
    require_finished(output, name)
    require_as_published(output.below(name))
    while True:
        champion = read_champion(output)
        if champion.name == name:
            return ChallengeResult(True, f"{name} is already the champion", "")
        decision = None
        if champion.name:
            champion_predictions, challenger_predictions, images = predict_pair(champion.name, name)
            decision = decide(champion_predictions, challenger_predictions, min_gain, max_class_loss)
            objection = "" if decision.is_released else decision.reason
        else:
            objection, images = _why_not_first(output, name, predict_pair, has_test_data)
        require()
        values: dict[str, Any] = {"champion": champion.name or None, "images": images}
        values |= asdict(decision) if decision else {"reason": objection or "there was no champion"}
        if objection:
            values |= {"is_released": False, "replaced": None}
            record = write_record(output, CHALLENGE, name, values)
            return ChallengeResult(
                False, _refusal_text(name, champion.name, objection), record, champion.name
            )
        released = _release(output, CHALLENGE, name, champion, values)
        if released is not None:
            return ChallengeResult(True, _release_text(name, champion.name, decision), released)
        # Another challenger moved the pointer first: compare with the new champion.


def _why_not_first(
    output: Store, name: str, predict_pair: PredictPair, has_test_data: bool
) -> tuple[str, str]:
    """Return why the run cannot be the first champion (empty if it can), and a description of the images.

    Uses the run's stored predictions for its held-out images if they exist, else those of `predict_pair`.
    """
    stored = None if has_test_data else read_stored_predictions(output.below(name))
    if stored is None:
        _, predictions, images = predict_pair(name, name)
        return why_guessing(predictions), images
    predictions, copies = stored
    if not len(predictions.labels):
        return "all of its held-out images are exact copies of training images", ""
    without = f", without {format_count(copies, 'exact copy', 'exact copies')} of training images"
    objection = why_guessing(predictions)
    return f"{objection}{without}" if objection and copies else objection, ""


def promote(
    output: Store, name: str, on_wait: Callable[[str], None] = lambda message: None
) -> ChallengeResult:
    """Make the finished run `name` the champion without a test, whatever the pointer names now.

    A withdrawn run is restored if its files still exist; `on_wait` receives a message while the lease of
    another process is watched. Raises UsageError, DataError for a run whose files changed since publication,
    TemporaryError if that other process is alive.
    """
    require_as_published(output.below(name))
    restore_run(output, name, on_wait)
    require_finished(output, name)
    while True:
        before = read_pointer(output)
        if before.name == name:
            return ChallengeResult(True, f"{name} is already the champion", "")
        record = _release(output, "forced", name, before, {})
        if record is not None:
            return ChallengeResult(True, f"{name} is the champion now (forced, without a test)", record)


def rollback(output: Store, on_wait: Callable[[str], None] = lambda message: None) -> ChallengeResult:
    """Restore the previous champion, whether or not the current one still exists.

    Earlier champions whose runs were removed are skipped. A withdrawn run is restored if its files still
    exist; `on_wait` receives a message while the lease of another process is watched. Raises UsageError if no
    earlier champion exists, DataError if its files changed since publication, TemporaryError if another
    process works on it or if the champion changed in the meantime, so that the rollback would not apply to
    the champion that the user meant.
    """
    champion = read_pointer(output)
    name, undone, skipped = _find_previous(output, champion.name, on_wait)
    record = _release(output, ROLLBACK, name, champion, {UNDONE: undone, "skipped": skipped})
    if record is None:
        raise TemporaryError(
            "The champion changed during the rollback.",
            "Run `trainer runs OUTPUT` to see the current champion.",
            received=f"{champion.name} in {output.uri}",
        )
    removed = f"; skipped, because removed: {', '.join(skipped)}" if skipped else ""
    return ChallengeResult(True, f"{name} is the champion again, replacing {champion.name}{removed}", record)


def _find_previous(
    output: Store, champion: str, on_wait: Callable[[str], None]
) -> tuple[str, int, list[str]]:
    """Return the newest earlier champion that exists, the number of releases to undo, and the removed ones.

    Restores the run if it was withdrawn. Raises UsageError if there is none.
    """
    removed: list[str] = []
    for name, undone in earlier_champions(output, champion):
        if name == champion or name in removed:
            continue
        require_as_published(output.below(name))
        if restore_run(output, name, on_wait):
            return name, undone, removed
        removed.append(name)
    others = f", before it {', '.join(removed)} (removed)" if removed else ""
    raise UsageError(
        "There is no earlier champion to restore.",
        "Run `trainer promote RUN --force` to choose a champion.",
        received=f"champion {champion or 'none'}{others} in {output.uri}",
    )


def _release(output: Store, kind: str, name: str, before: Champion, values: dict[str, Any]) -> str | None:
    """Compare-and-swap the champion pointer from `before` to `name`; return the record, None if it changed.

    Raises UsageError, and restores the pointer, if the run was retired in the meantime. Retiring a run checks
    the pointer afterwards, and moving the pointer checks the run afterwards, so one of the two detects the
    conflict.
    """
    # Written before the pointer moves: a crash between the two would lose the previous champion's name.
    record = write_record(output, kind, name, values | {"replaced": before.name or None, "is_released": True})
    version = swap_champion(output, name, before.version)
    is_done = version is not None and is_finished(output.below(name))
    if not is_done:
        if version is not None:
            restore_champion(output, before, version)
        output.remove(record)
        require_finished(output, name)
    return record if is_done else None


def _refusal_text(name: str, champion: str, objection: str) -> str:
    if not champion:
        return f"{name} does not become champion, and there is no champion yet: {objection}"
    return f"{champion} remains champion; {name} is not promoted: {objection}"


def _release_text(name: str, champion: str, decision: Decision | None) -> str:
    if decision is None:
        return f"{name} is the first champion"
    return f"{name} replaces {champion} as champion: {decision.reason}"


def require_finished(output: Store, name: str) -> None:
    """Raise UsageError for a run that cannot be the champion, DataError for one with a changed manifest."""
    if is_finished(output.below(name)):
        return
    require_not_withdrawn(output.below(name))
    published_files(output.below(name))
    raise UsageError(
        "Only a finished run can be the champion.",
        "Finish it with `trainer train`.",
        received=output.below(name).uri,
    )
