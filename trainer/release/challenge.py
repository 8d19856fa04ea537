"""Challenge, promotion and rollback of the champion.

A challenge writes an audit record whether or not the challenger wins, and moves the champion pointer if it
does. If two runs challenge at the same time, the second one is compared with the winner.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from trainer.errors import TemporaryError, UsageError
from trainer.evaluate.metrics import AnyPredictions
from trainer.release.audit_log import CHALLENGE, ROLLBACK, champion_before, keep_record
from trainer.release.decided import Decision
from trainer.release.decision import decide, why_guessing
from trainer.release.own_answers import own_answers
from trainer.release.retention import bring_back
from trainer.report.names import format_count
from trainer.runs import require_not_withdrawn
from trainer.runs.champion import Champion, read_champion, read_pointer, restore_champion, swap_champion
from trainer.runs.integrity import published_files, require_as_published
from trainer.runs.publish import is_finished
from trainer.storage.store import Store

Answers = Callable[[str, str], tuple[AnyPredictions, AnyPredictions, str]]
"""(champion name, challenger name) -> predictions of both for the same images, and which images these are."""


@dataclass(frozen=True)
class ChallengeResult:
    """Result of a challenge, promotion or rollback."""

    is_champion: bool
    """Whether the run is the champion now."""
    said: str
    """Result as a sentence."""
    record: str
    """Name of the audit record; empty if the run was the champion already."""
    stays: str = ""
    """Champion that was not replaced; empty if there is none."""


def challenge(
    output: Store,
    name: str,
    min_gain: float,
    max_class_loss: float,
    answers: Answers,
    require: Callable[[], None] = lambda: None,
    has_test_data: bool = False,
) -> ChallengeResult:
    """Make the finished run `name` the champion if it is better; without a champion it must beat guessing.

    has_test_data: whether `answers` predicts other images than the run's held-out ones; a first champion must
    then beat guessing on those. `require` is called before anything is written, and raises if another process
    has taken over this challenge.
    Raises UsageError for a run that is not finished or a pointer to a missing run, DataError for a run whose
    files changed since publication, and whatever `answers` raises.
    """
    require_finished(output, name)
    require_as_published(output.below(name))
    while True:
        champion = read_champion(output)
        if champion.name == name:
            return ChallengeResult(True, f"{name} is the champion already", "")
        decision = None
        if champion.name:
            of_champion, of_challenger, images = answers(champion.name, name)
            decision = decide(of_champion, of_challenger, min_gain, max_class_loss)
            against = "" if decision.is_released else decision.reason
        else:
            against, images = _why_not_first(output, name, answers, has_test_data)
        require()
        values: dict[str, Any] = {"champion": champion.name or None, "images": images}
        values |= asdict(decision) if decision else {"reason": against or "there was no champion"}
        if against:
            values |= {"is_released": False, "replaced": None}
            record = keep_record(output, CHALLENGE, name, values)
            return ChallengeResult(False, _refused(name, champion.name, against), record, champion.name)
        released = _enthrone(output, CHALLENGE, name, champion, values)
        if released is not None:
            return ChallengeResult(True, _said(name, champion.name, decision), released)
        # Another challenger moved the pointer first: compare with the new champion.


def _why_not_first(output: Store, name: str, answers: Answers, has_test_data: bool) -> tuple[str, str]:
    """Return why the run cannot be the first champion (empty if it can), and a description of the images.

    Uses the run's stored predictions for its held-out images if they exist, else those of `answers`.
    """
    own = None if has_test_data else own_answers(output.below(name))
    if own is None:
        _, given, images = answers(name, name)
        return why_guessing(given), images
    given, copies = own
    if not len(given.labels):
        return "all of its held-out images are exact copies of training images, which shows nothing", ""
    without = f", without {format_count(copies, 'exact copy', 'exact copies')} of training images"
    against = why_guessing(given)
    return f"{against}{without}" if against and copies else against, ""


def promote(output: Store, name: str, on_wait: Callable[[str], None] = lambda words: None) -> ChallengeResult:
    """Make the finished run `name` the champion without a test, whatever the pointer names now.

    A withdrawn run is restored if its files still exist; `on_wait` receives a message while the lease of
    another process is watched. Raises UsageError, DataError for a run whose files changed since publication,
    TemporaryError if that other process is alive.
    """
    require_as_published(output.below(name))
    bring_back(output, name, on_wait)
    require_finished(output, name)
    while True:
        before = read_pointer(output)
        if before.name == name:
            return ChallengeResult(True, f"{name} is the champion already", "")
        record = _enthrone(output, "forced", name, before, {})
        if record is not None:
            return ChallengeResult(True, f"{name} is the champion now, by force", record)


def rollback(output: Store, on_wait: Callable[[str], None] = lambda words: None) -> ChallengeResult:
    """Restore the previous champion, whether or not the current one still exists.

    A withdrawn run is restored if its files still exist; `on_wait` receives a message while the lease of
    another process is watched. Raises UsageError if there is no previous champion, DataError if its files
    changed since publication, TemporaryError if another process works on it or if the champion changed in the
    meantime, so that the rollback would not apply to the champion that the user meant.
    """
    champion = read_pointer(output)
    before = champion_before(output, champion.name)
    if before is not None:
        require_as_published(output.below(before))
    if before is None or not bring_back(output, before, on_wait):
        raise UsageError(
            "There is no earlier champion to go back to; `trainer promote RUN --force` names another.",
            received=f"champion {champion.name or 'none'}, before it {before or 'none'} in {output.uri}",
        )
    record = _enthrone(output, ROLLBACK, before, champion, {})
    if record is None:
        raise TemporaryError(
            "The champion changed at the same moment; `trainer runs` shows which it is now.",
            received=f"{champion.name} in {output.uri}",
        )
    return ChallengeResult(True, f"{before} is the champion again, in the place of {champion.name}", record)


def _enthrone(output: Store, kind: str, name: str, before: Champion, values: dict[str, Any]) -> str | None:
    """Compare-and-swap the champion pointer from `before` to `name`; return the record, None if it changed.

    Raises UsageError, and restores the pointer, if the run was retired in the meantime. Retiring a run checks
    the pointer afterwards, and moving the pointer checks the run afterwards, so one of the two detects the
    conflict.
    """
    # Written before the pointer moves: a crash between the two would lose the previous champion's name.
    record = keep_record(output, kind, name, values | {"replaced": before.name or None, "is_released": True})
    version = swap_champion(output, name, before.version)
    is_done = version is not None and is_finished(output.below(name))
    if not is_done:
        if version is not None:
            restore_champion(output, before, version)
        output.remove(record)
        require_finished(output, name)
    return record if is_done else None


def _refused(name: str, champion: str, against: str) -> str:
    if not champion:
        return f"{name} does not become the champion, and there is none: {against}"
    return f"{champion} stays the champion; of {name}: {against}"


def _said(name: str, champion: str, decision: Decision | None) -> str:
    if decision is None:
        return f"{name} is the champion: there was none"
    return f"{name} takes the place of {champion}: {decision.reason}"


def require_finished(output: Store, name: str) -> None:
    """Raise UsageError for a run that can't be the champion, DataError for one with a changed manifest."""
    if is_finished(output.below(name)):
        return
    require_not_withdrawn(output.below(name))
    published_files(output.below(name))
    raise UsageError(
        "Only a finished run can be the champion; `trainer train` finishes it.",
        received=f"{output.below(name).uri}",
    )
