"""SIGKILL at random moments of whole runs: results bit-identical to an undisturbed run."""

from __future__ import annotations

import random
import statistics
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from chaos.fixtures import Attempt, emulated_bucket, make_images, read_result
from trainer.runs.publish import MANIFEST, MARKER, latest_run, verify
from trainer.storage import open_store
from trainer.storage.store import Store

EVERY_STEPS = 10
SETTINGS = [
    "train.deterministic=true", "train.epochs=12", "train.global_batch_size=8", "train.steps_per_call=1",
    "train.ema_decay=0.9", "train.label_smoothing=0.1", "train.log_interval_seconds=0.0001",
    f"train.checkpoint.every_steps={EVERY_STEPS}", "train.max_stalled_starts=1000",
    "optimizer={name: adamw, weight_decay: 0.05, schedule: cosine, warmup_epochs: 0.5}",
]  # fmt: skip
FROM_SCRATCH = [
    "data.image_size=16", "augment={flip: horizontal, crop: {size: 12}, hue: 0.05, erase: 0.3, mixup: 0.3}",
    "model={family: residual, stem_filters: 8, filters: [16], blocks: [1], dropout: 0.3}",
]  # fmt: skip
PRETRAINED = [
    "data.image_size=32", "model={family: pretrained, backbone: efficientnet-lite0, dropout: 0.3}",
    "train.finetune={probe: steps, frozen_epochs: 4, last_stage_epochs: 4, layer_decay: 0.8}",
]  # fmt: skip
"""Fine-tuning phases: head on cached features, last stage, all weights, a third of the epochs each."""

_PUBLISHING_SECONDS = 0.05
_STEPS = '"event": "progress"'
PHASES = (
    ("start", "run ", '"event": "progress"'),
    ("training", '"event": "progress"', '"epoch": 12, '),
    ("export", '"event": "epoch", "epochs": 12, "epoch": 12', "export "),
    ("publish", "export ", "try "),
    ("manifest", "export ", "try "),
)
"""(name, text of the log line that begins the phase, text of the line that ends it)."""


class Kills:
    """Kills runs of one data set and compares each with an undisturbed run."""

    def __init__(self, folder: Path, seed: int, settings: Sequence[str] = (), during: str = "") -> None:
        self.folder, self.rng = folder, random.Random(seed)
        self.settings = [part for setting in (*SETTINGS, *settings) for part in ("--set", setting)]
        self.moments = [phase for phase in PHASES if during in ("", phase[0])]
        self.data = make_images(folder / "images")
        self.problems: list[str] = []
        self.phases: Counter[str] = Counter()
        self.cuts: Counter[str] = Counter()
        """Number of kills by the publication state that they left."""
        self.repeated: list[int] = []
        self.step_ranges: list[str] = []
        """First and last step of each attempt of the current run."""
        undisturbed = self.attempt(str(folder / "calm"), "calm")
        if undisturbed.end():
            raise SystemExit(undisturbed.text())
        self.expected = read_result(str(folder / "calm"), "calm")
        self.seconds = {name: _between(undisturbed, begin, end) for name, begin, end in PHASES}
        print("an undisturbed run, s:", {name: round(value, 2) for name, value in self.seconds.items()})

    def attempt(self, output: str, name: str) -> Attempt:
        arguments = ["--data", str(self.data), "--output", output, "--run-name", name]
        return Attempt([*arguments, *self.settings], self.folder / "cache")

    def disturb(self, output: str, kills: int) -> None:
        """Kill runs in `output` `kills` times in total, and let each run finish."""
        number = 0
        while kills > 0:
            name, number, last = f"run-{number}", number + 1, 0
            self.step_ranges = []
            for _ in range(self.rng.randint(1, 6)):
                attempt = self.attempt(output, name)
                if kills <= 0 or not self._kill(attempt, open_store(output).below(name)):
                    break
                kills -= 1
                last = self._count_repeated(attempt, last)
                self._check_pointer(output)
            else:
                attempt = self.attempt(output, name)
            if attempt.end():
                self.problems.append(f"{output}/{name} ended with an error:\n{attempt.text()}")
                return
            self._count_repeated(attempt, last)
            self._check(output, name)
            self._check_pointer(output)
            print(f"{output}/{name}: complete; {kills} kills left", flush=True)

    def _kill(self, attempt: Attempt, run: Store) -> bool:
        """Kill the attempt within a random phase; return False if it finished before."""
        phase, begin, _ = self.rng.choice(self.moments)
        if not attempt.wait_for(begin):
            return False
        latest = self.seconds[phase]
        if phase == "manifest":
            # Manifest, marker and pointer are milliseconds apart: wait for the manifest.
            while run.find(MANIFEST) is None and attempt.process.poll() is None:
                time.sleep(0.001)
            latest = _PUBLISHING_SECONDS
        try:
            attempt.process.wait(self.rng.uniform(0, latest))
            return False
        except subprocess.TimeoutExpired:  # it is still running
            attempt.process.kill()
        attempt.end()
        self.phases[phase] += 1
        self.cuts[_cut(run, open_store(run.uri.rpartition("/")[0]))] += 1
        return True

    def _count_repeated(self, attempt: Attempt, last: int) -> int:
        """Record the number of steps that this attempt repeated; return the last step done so far."""
        self.step_ranges.append(f"{attempt.resumed_step()} to {attempt.last_step()}")
        if last and attempt.time_of(_STEPS):
            self.repeated.append(max(0, last - attempt.resumed_step()))
        return max(last, attempt.last_step())

    def _check(self, output: str, name: str) -> None:
        result = read_result(output, name)
        differing = sorted(key for key in self.expected if result.get(key) != self.expected[key])
        if differing or result.keys() != self.expected.keys():
            rows = zip(
                *(content["history.jsonl"].decode().splitlines() for content in (self.expected, result)),
                strict=False,
            )
            first = next((f"{row} {other}" for row, other in rows if row != other), "no row of the history")
            self.problems.append(
                f"{output}/{name} differs in {len(differing)} of {len(self.expected)} files and arrays: "
                f"{', '.join(differing[:5])}; first in {first}; "
                f"steps of its attempts: {', '.join(self.step_ranges)}"
            )

    def _check_pointer(self, output: str) -> None:
        store = open_store(output)
        name = latest_run(store)
        if name is None and store.read("latest") is not None:
            self.problems.append(f"{output}/latest names an unfinished run")
        if name is not None:
            self.problems += verify(store.below(name))

    def control(self) -> bool:
        """Zero the optimizer moments in a checkpoint; return whether the comparison detects it."""
        output = str(self.folder / "control")
        attempt = self.attempt(output, "run")
        attempt.wait_for('"epoch": 4')
        attempt.process.kill()
        attempt.end()
        for path in Path(output, "run", "checkpoints").glob("step-*.npz"):
            with np.load(path) as file:
                arrays = {name: file[name] for name in file.files}
            moments = [name for name in arrays if name.startswith("optimizer/") and arrays[name].ndim]
            arrays |= {name: np.zeros_like(arrays[name]) for name in moments}
            np.savez(path, **arrays)
        attempt = self.attempt(output, "run")
        if attempt.end() or not attempt.resumed_step():
            raise SystemExit(attempt.text())
        return any(
            value != self.expected[name]
            for name, value in read_result(output, "run").items()
            if not name.startswith("optimizer/")  # those were changed directly; only their effects count
        )


def _cut(run: Store, output: Store) -> str:
    if run.find(MANIFEST) is None:
        return "no manifest"
    if run.find(MARKER) is None:
        return "a manifest, no marker"
    return "all" if latest_run(output) == run.uri.rpartition("/")[2] else "a marker, no pointer"


def _between(attempt: Attempt, begin: str, end: str) -> float:
    first, last = attempt.time_of(begin), attempt.time_of(end)
    if first is None or last is None:
        raise SystemExit(f"No line contains {begin if first is None else end!r}:\n{attempt.text()}")
    return last - first


def main(times: int, seed: int, *settings: str, pretrained: bool = False, during: str = "") -> list[str]:
    """Kill runs `times` times, half on disk, half on the emulator; return the failures.

    `settings` are KEY=VALUE as for --set. pretrained: the runs fine-tune a backbone. during: the phase in
    `PHASES` in which all kills happen; '' for any phase.
    """
    settings = (*(PRETRAINED if pretrained else FROM_SCRATCH), *settings)
    with tempfile.TemporaryDirectory() as temporary:
        kills = Kills(Path(temporary), seed, settings, during)
        kills.disturb(str(Path(temporary, "disk")), times - times // 2)
        with emulated_bucket("chaos") as output:
            kills.disturb(output, times // 2)
        print(f"{sum(kills.phases.values())} kills: {dict(kills.phases)}; states left: {dict(kills.cuts)}")
        print(
            f"steps repeated after a kill: at most {max(kills.repeated, default=0)}, "
            f"median {statistics.median(kills.repeated or [0]):g}; limit {EVERY_STEPS}"
        )
        is_detected = kills.control()
        print(f"control without optimizer moments: {'detected' if is_detected else 'NOT detected'}")
        if missed := [name for name, _, _ in kills.moments if times >= 50 and not kills.phases[name]]:
            kills.problems.append(f"no kill during {', '.join(missed)}; increase --times")
        between = kills.cuts["a manifest, no marker"] + kills.cuts["a marker, no pointer"]
        if times >= 50 and not during and not between:
            kills.problems.append("no kill left a manifest without a marker, or a marker without a pointer")
        if max(kills.repeated, default=0) > EVERY_STEPS:
            kills.problems.append(f"{max(kills.repeated)} steps were repeated after a kill")
        return kills.problems + ([] if is_detected else ["the comparison does not detect missing moments"])
