"""Uploads through a faulty network: verified files in the end, or an error and nothing visible."""

from __future__ import annotations

import os
import random
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
from helpers.fault_proxy import FAULTS, at_random, fault_proxy

from chaos.fixtures import emulated_bucket
from trainer.errors import TemporaryError, TrainerError
from trainer.runs.publish import is_finished, latest_run, publish, verify
from trainer.storage import gcs, open_store
from trainer.storage.mirror import Mirror
from trainer.training import AsyncCheckpointer


class _Value:
    """Minimal variable for a checkpoint."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def numpy(self) -> np.ndarray:
        return self.array


def main(times: int, seed: int) -> list[str]:
    """Execute `times` runs through the proxy; return the failures."""
    # Shorter timeouts than in production, so that 100 runs take minutes.
    gcs.TIMEOUT_SECONDS, gcs.RETRY_SECONDS = 1.0, 8.0
    problems: list[str] = []
    ends: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    with emulated_bucket("faults") as output:
        for number in range(times):
            end, injected, failures = _one(output, number, seed)
            ends[end] += 1
            faults.update(injected)
            problems += failures
    if times >= 50 and not (ends["published"] and set(FAULTS) <= set(faults)):
        problems.append("not every kind of fault was injected, or no run was published")
    print(f"{times} runs: {dict(ends)}")
    print(f"{sum(faults.values())} faults: {dict(faults)}")
    return problems


def _one(output: str, number: int, seed: int) -> tuple[str, list[str], list[str]]:
    """Execute one run; return how it ended, the injected faults and the failures."""
    rng = random.Random(f"{seed} {number}")
    name, clean = f"run-{number}", os.environ["STORAGE_EMULATOR_HOST"]
    before = latest_run(open_store(output))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, name)
        choose = at_random(rng.randrange(1 << 30), rng.choice((0.05, 0.2, 0.5)))
        with fault_proxy(clean, choose, stall_seconds=1.5) as proxy:
            os.environ["STORAGE_EMULATOR_HOST"] = proxy.address
            try:
                _run(output, name, folder, rng)
                end = "published"
            except TrainerError as error:
                end = f"exit {error.exit_code}"
                if error.exit_code != TemporaryError.exit_code:
                    print(f"{name}: {error}")
            finally:
                os.environ["STORAGE_EMULATOR_HOST"] = clean
        return end, proxy.done, _lost(output, name, folder, before, end)


def _run(output: str, name: str, folder: Path, rng: random.Random) -> None:
    """Upload, checkpoint, publish and download, with files of various sizes."""
    store = open_store(output)
    mirror = Mirror(folder, store.below(name))
    for index, size in enumerate((0, 1, 5000, 300_000, 9 << 20)):
        (folder / "model").mkdir(parents=True, exist_ok=True)
        (folder / "model" / f"{index}.bin").write_bytes(rng.randbytes(size))
    with AsyncCheckpointer(folder / "checkpoints", mirror.sync) as checkpointer:
        for step in (1, 2, 3):
            variables = {"weights": _Value(np.frombuffer(rng.randbytes(80_000), np.uint8))}
            checkpointer.save(step, variables, {"at": step}, whole_epoch=True)
        checkpointer.flush()
    mirror.sync()
    publish(store, name, folder)
    with tempfile.TemporaryDirectory() as temporary:
        copy = Mirror(Path(temporary), store.below(name))
        copy.pull(lambda name: True)
        for path in folder.rglob("*.*"):
            if path.read_bytes() != (Path(temporary) / path.relative_to(folder)).read_bytes():
                raise SystemExit(f"FAILED: {path.name} was read back with other contents")


def _lost(output: str, name: str, folder: Path, before: str | None, end: str) -> list[str]:
    """Return what is wrong with the visible state, read through a working network."""
    store = open_store(output)
    latest = latest_run(store)
    problems = [] if end in ("published", "exit 75") else [f"{name} ended with {end}"]
    if latest not in (before, name):
        problems.append(f"after {name}, latest names {latest or 'no finished run'} instead of {before}")
    if end == "published" and latest != name:
        problems.append(f"{name} was published but is not the latest")
    if end != "published" and is_finished(store.below(name)):
        print(f"{name} ended with {end} after its marker was written")
    if is_finished(store.below(name)):
        problems += [f"{name}: {problem}" for problem in verify(store.below(name))]
        files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*.*")}
        for file, path in files.items():
            content = store.read(f"{name}/{file}")
            if content is None or content.data != path.read_bytes():
                problems.append(f"{name}/{file} has other contents than were written")
    return problems
