"""A finished run challenges the champion.

In: the store of all runs, the challenger's name, and what answers images. Out: what was decided, kept as a
record whichever way it goes; the pointer, if it won. Of two challengers at once the second one meets the
winner.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from trainer.champion import Champion, read_champion, read_pointer, restore_champion, swap_champion
from trainer.exits import UsageError
from trainer.metrics import Predictions
from trainer.publish import is_finished
from trainer.release.decision import Decision, decide
from trainer.release.records import champion_before, keep_record
from trainer.storage.store import Store

Answers = Callable[[str, str], tuple[Predictions, Predictions, str]]
"""The names of the champion and the challenger to what both say of the same images, and which those are."""


@dataclass(frozen=True)
class Outcome:
    """Of one challenge."""

    is_champion: bool
    """Whether the challenger is the champion now."""
    said: str
    """In a sentence."""
    record: str
    """The name of the record; empty if there was nothing to decide."""


def challenge(output: Store, name: str, min_gain: float, max_class_loss: float, answers: Answers) -> Outcome:
    """Let the finished run `name` take the champion's place, if it is better.

    Raises UsageError for a run that isn't finished or a pointer to one that is gone, and what `answers`
    raises.
    """
    _require_finished(output, name)
    while True:
        champion = read_champion(output)
        if champion.name == name:
            return Outcome(True, f"{name} is the champion already", "")
        decision, images = None, ""
        if champion.name:
            of_champion, of_challenger, images = answers(champion.name, name)
            decision = decide(of_champion, of_challenger, min_gain, max_class_loss)
        is_released = decision is None or decision.is_released
        if is_released and not _enthrone(output, name, champion):
            continue  # another one was faster: that one is to be beaten
        return _told(output, name, champion.name or None, decision, images)


def promote(output: Store, name: str) -> Outcome:
    """Make the finished run `name` the champion without a test, whatever the pointer says now."""
    _require_finished(output, name)
    while True:
        before = read_pointer(output)
        if _enthrone(output, name, before):
            values = {"replaced": before.name or None, "is_released": True}
            record = keep_record(output, "forced", name, values)
            return Outcome(True, f"{name} is the champion now, by force", record)


def rollback(output: Store) -> Outcome:
    """Give the pointer back to the champion before this one. Raises UsageError if there is none."""
    while True:
        champion = read_champion(output)
        before = champion_before(output, champion.name)
        if before is None or not is_finished(output.below(before)):
            raise UsageError(
                "There is no earlier champion to go back to; `trainer promote RUN --force` names another. "
                f"Received: champion {champion.name or 'none'}, before it {before or 'none'} in {output.uri}"
            )
        if _enthrone(output, before, champion):
            values = {"replaced": champion.name, "is_released": True}
            record = keep_record(output, "rollback", before, values)
            return Outcome(True, f"{before} is the champion again, in the place of {champion.name}", record)


def _enthrone(output: Store, name: str, before: Champion) -> bool:
    """Let the pointer name `name` if it is still as it was read `before`; return whether it was.

    Raises UsageError if the run was retired meanwhile, and gives the pointer back: who retires a run looks
    at the pointer afterwards, and who moves the pointer looks at the run afterwards: one of them sees it.
    """
    version = swap_champion(output, name, before.version)
    if version is not None and not is_finished(output.below(name)):
        restore_champion(output, before, version)
        _require_finished(output, name)
    return version is not None


def _told(output: Store, name: str, champion: str | None, decision: Decision | None, images: str) -> Outcome:
    values: dict[str, Any] = {"replaced": champion, "champion": champion, "images": images}
    if decision is None:
        values |= {"is_released": True, "reason": "there was no champion"}
        said = f"{name} is the champion: there was none"
        return Outcome(True, said, keep_record(output, "challenge", name, values))
    if not decision.is_released:
        values["replaced"] = None
    record = keep_record(output, "challenge", name, values | asdict(decision))
    if decision.is_released:
        return Outcome(True, f"{name} takes the place of {champion}: {decision.reason}", record)
    return Outcome(False, f"{champion} stays the champion; of {name}: {decision.reason}", record)


def _require_finished(output: Store, name: str) -> None:
    if not is_finished(output.below(name)):
        raise UsageError(
            "Only a finished run can be the champion; `trainer train` finishes it. "
            f"Received: {output.below(name).uri}"
        )
