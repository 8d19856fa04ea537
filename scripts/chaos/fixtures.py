"""Test fixtures of the chaos scripts: an emulated bucket, training images, and processes of runs."""

from __future__ import annotations

import io
import logging
import multiprocessing
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from helpers.bucket_server import BUCKET, OTHER_ENDPOINT, OtherServer, bucket_server
from PIL import Image

from trainer.storage import open_store
from trainer.storage.store import Store

_RESUMED = re.compile(r"Resuming after step (\d+)")
_STEP = re.compile(r'"event": "progress".*"step": (\d+)')


@contextmanager
def emulated_bucket(name: str) -> Iterator[str]:
    """Yield the URI of an empty prefix in an emulated bucket, for this process and its children.

    The emulator is a separate process, so it does not share the interpreter with the code that is measured.
    """
    context = multiprocessing.get_context("spawn")
    parent, child = context.Pipe()
    process = context.Process(target=_serve, args=(child,), daemon=True)
    process.start()
    if not parent.poll(60):
        raise SystemExit("The bucket emulator did not start within 60 s.")
    address = parent.recv()
    OtherServer(address)  # creates the bucket
    os.environ["STORAGE_EMULATOR_HOST"] = address
    try:
        yield f"gs://{BUCKET}/{name}"
    finally:
        os.environ.pop("STORAGE_EMULATOR_HOST")
        if OTHER_ENDPOINT:
            os.environ["STORAGE_EMULATOR_HOST"] = OTHER_ENDPOINT
        parent.send("end")
        process.join()


def _serve(connection: Connection) -> None:
    # It logs every missing object as an error.
    logging.getLogger("gcp_storage_emulator").setLevel(logging.CRITICAL)
    with bucket_server() as server:
        connection.send(server.address)
        connection.recv()


def make_images(folder: Path, per_class: int = 60, side: int = 24) -> Path:
    """Write two classes of noisy images, dark and bright; return the folder."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(("dark", "light")):
        (folder / name).mkdir(parents=True)
        for number in range(per_class):
            pixels = rng.integers(0, 150, (side, side, 3)) + 60 * label
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number:03d}.png")
    return folder


class Attempt:
    """One process of a run, and its output lines with their times."""

    def __init__(
        self,
        arguments: list[str],
        cache: Path,
        program: Sequence[str] = ("-m", "trainer.task"),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.lines: list[tuple[float, str]] = []
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, *program, *arguments],
            env={**os.environ, "XDG_CACHE_HOME": str(cache), **(environment or {})},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout or ():
            self.lines.append((time.monotonic() - self.started, line))

    def wait_for(self, text: str) -> bool:
        """Wait for a line that contains `text`; return False if the process ends without one."""
        while self.process.poll() is None or self._reader.is_alive():
            if self.time_of(text) is not None:
                return True
            time.sleep(0.002)
        return self.time_of(text) is not None

    def time_of(self, text: str) -> float | None:
        """Return the time of the first line that contains `text`, in seconds since the start, or None."""
        return next((moment for moment, line in list(self.lines) if text in line), None)

    def end(self) -> int:
        """Wait for the process to exit; return the exit code."""
        code = self.process.wait()
        self._reader.join()
        return code

    def resumed_step(self) -> int:
        """Return the step from which it resumed; 0 if it started from the beginning."""
        return max((int(match[1]) for _, line in self.lines if (match := _RESUMED.search(line))), default=0)

    def last_step(self) -> int:
        """Return the last step that it logged."""
        steps = (int(match[1]) for _, line in self.lines if (match := _STEP.search(line)))
        return max(steps, default=self.resumed_step())

    def text(self) -> str:
        """Return its whole output."""
        return "".join(line for _, line in self.lines)


def read_result(output: str, name: str) -> dict[str, bytes]:
    """Return the contents that two equal runs must share, by file name or variable name."""
    run = open_store(output).below(name)
    contents = {file: _read(run, file) for file in ("history.jsonl", "metrics.json", "predictions.csv")}
    newest = max(entry.name for entry in run.entries("checkpoints/step-"))
    with np.load(io.BytesIO(_read(run, newest))) as arrays:
        contents |= {name: arrays[name].tobytes() for name in arrays.files if name != "record.json"}
    return contents


def _read(run: Store, name: str) -> bytes:
    content = run.read(name)
    if content is None:
        raise SystemExit(f"{run.at(name)} does not exist.")
    return content.data
