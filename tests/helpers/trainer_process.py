"""Running the command line as a subprocess, and checking its errors."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

QUICK = [
    "--set", "data.image_size=16", "--set", "model={family: plain, filters: [8], dropout: 0.2}",
    "--set", "train.epochs=2", "--set", "train.global_batch_size=8", "--set", "train.deterministic=true",
]  # fmt: skip


def command(*arguments: str | Path, module: str = "trainer.cli") -> list[str]:
    return [sys.executable, "-m", module, *map(str, arguments)]


def trainer(
    *arguments: str | Path, cache: Path, module: str = "trainer.cli", cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "NO_COLOR": "1"}
    return subprocess.run(
        command(*arguments, module=module),
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def error_line(done: subprocess.CompletedProcess[str], exit_code: int) -> str:
    """Return the error line; check the exit code and that there is no traceback."""
    refused(done, exit_code)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert "Received: " in line
    return line


def refused(done: subprocess.CompletedProcess[str], exit_code: int, *words: str) -> None:
    """Check the exit code, the words in stderr, and that there is no traceback."""
    assert done.returncode == exit_code, done.stdout + done.stderr
    for word in words:
        assert word in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert "Error: " in done.stderr
