"""One run, moved between 1, 2 and 4 replicas by signals: the same result as an undisturbed run."""

from __future__ import annotations

import json
import random
import re
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path

from scale.setups import (
    EPOCHS,
    FROM_SCRATCH,
    STEPS_PER_EPOCH,
    TOLERANCE,
    Setup,
    Team,
    choose_setups,
    make_overlapping,
    outcome,
)

MAX_SECONDS = 30.0
"""Maximum seconds from the exit of one process to that of the others."""
EVERY_STEPS = 10
_EXTRA_SETTINGS = (
    f"train.checkpoint.every_steps={EVERY_STEPS}",
    "train.steps_per_call=1",
    "train.grace_seconds=20",
)
_STOPPED = re.compile(r"Stopped on request after step (\d+) of \d+; the checkpoint is safe")
_LOADING_SHARE = 0.2
"""Share of the signals that are sent in the seconds between rendezvous and training."""
_LOADING_SECONDS = 5.0


class Moves:
    """Moves a run between setups and collects the failures."""

    def __init__(self, folder: Path, seed: int, setups: tuple[Setup, ...]) -> None:
        self.folder, self.rng, self.setups = folder, random.Random(seed), setups
        self.data = make_overlapping(folder / "images")
        self.problems: list[str] = []
        self.uses: Counter[Setup] = Counter()
        self.seconds: list[float] = []
        """Seconds from each SIGKILL to the exit of the other processes."""

    def start(self, setup: Setup, name: str) -> Team:
        return Team(setup, self.folder, self.data, name, *FROM_SCRATCH, *_EXTRA_SETTINGS)

    def other(self, setup: Setup | None) -> Setup:
        """Return the least used setup with another kind or number of replicas, at random in a tie."""
        others = [
            other
            for other in self.setups
            if setup is None or (other.kind, other.replicas) != (setup.kind, setup.replicas)
        ]
        least = min(self.uses[other] for other in others)
        chosen = self.rng.choice([other for other in others if self.uses[other] == least])
        self.uses[chosen] += 1
        return chosen

    def move(self, setup: Setup, number: signal.Signals, until_step: int) -> bool:
        """Run in `setup` until about step `until_step`, then send `number` to one of its processes.

        Returns False if the run finished before.
        """
        team, begun = self.start(setup, "moved"), len(_lines(self.folder))
        if not team.processes[0].wait_for("run   "):
            raise SystemExit(team.text())
        if self.rng.random() < _LOADING_SHARE:
            time.sleep(self.rng.uniform(0.0, _LOADING_SECONDS))
        else:
            while _last_step(self.folder) < until_step and team.processes[0].process.poll() is None:
                time.sleep(0.005)
            time.sleep(self.rng.uniform(0.0, 0.1))
        index, trained = self.rng.randrange(len(team.processes)), len(_lines(self.folder)) > begun
        moment = f"at step {_last_step(self.folder) + 1}" if trained else "while loading"
        seconds = team.signal(number, index)
        codes = team.end()
        times = ", ".join(f"{value:.1f}" for value in seconds)
        event = f"{number.name} to process {index} {moment}"
        print(f"{setup!s:<24} {event}: exit codes {codes}, after {times} s", flush=True)
        if not any(codes):
            return False
        self._check(team, number, index, codes, seconds, trained)
        return True

    def _check(
        self,
        team: Team,
        number: signal.Signals,
        index: int,
        codes: list[int],
        seconds: list[float],
        trained: bool,
    ) -> None:
        problems = []
        if number == signal.SIGKILL:
            expected = [-signal.SIGKILL if other == index else 75 for other in range(len(codes))]
            others = [value for other, value in enumerate(seconds) if other != index]
            self.seconds += others
            if max(others, default=0.0) > MAX_SECONDS:
                problems.append(f"the others ran for another {max(others):.1f} s")
        else:
            expected = [143] * len(codes)
            steps = [sorted(set(_STOPPED.findall(process.text()))) for process in team.processes]
            if trained and (steps != [steps[0]] * len(steps) or len(steps[0]) != 1):
                problems.append(f"they stopped after the steps {steps}")
        if codes != expected:
            problems.append(f"exit codes {codes} instead of {expected}\n{team.text()[-3000:]}")
        self.problems += [f"{team.setup}, {number.name}: {problem}" for problem in problems]


def main(times: int, seed: int, gpus: int = 0) -> list[str]:
    """Move a run `times` times; return the failures."""
    with tempfile.TemporaryDirectory() as temporary:
        setups = tuple(
            setup for setup in choose_setups(gpus) if not setup.xla
        )  # the same spec for all setups
        moves = Moves(Path(temporary), seed, setups)
        undisturbed = moves.start(Setup(1, 1), "calm")
        if any(undisturbed.end()):
            raise SystemExit(undisturbed.text())
        expected = outcome(moves.folder, "calm", undisturbed.notes[0])
        total, setup = STEPS_PER_EPOCH * EPOCHS, moves.other(None)
        for turn in range(times):
            # Spread over the remaining steps, so that the run does not finish before its last move.
            left = total - _last_step(moves.folder)
            until = _last_step(moves.folder) + moves.rng.randint(1, max(1, 2 * left // (times - turn + 2)))
            number = signal.SIGKILL if turn % 2 else signal.SIGTERM
            if not moves.move(setup, number, until):
                return [*moves.problems, f"the run finished after {turn} of {times} moves"]
            setup = moves.other(setup)
        last = moves.start(setup, "moved")
        if any(last.end()):
            raise SystemExit(last.text())
        text, missed = outcome(moves.folder, "moved", _notes(moves.folder)).compare(expected)
        print(f"{setup!s:<24} to the end; tolerance relative to the undisturbed run: {TOLERANCE:g}\n{text}")
        if moves.seconds:
            late = max(moves.seconds)
            print(f"after a SIGKILL the others exited within {late:.1f} s, limit {MAX_SECONDS:g} s")
        return moves.problems + missed


def _notes(folder: Path) -> Path:
    """Return the notes of the chief, from all starts."""
    return folder / "moved-0.jsonl"


def _lines(folder: Path) -> list[str]:
    notes = _notes(folder)
    return notes.read_text().splitlines() if notes.exists() else []


def _last_step(folder: Path) -> int:
    """Return the last step that the moved run has done, counted from 0; -1 before the first."""
    whole = [line for line in _lines(folder)[-2:] if line.endswith("}") and '"step"' in line]
    return int(json.loads(whole[-1])["step"]) if whole else -1
