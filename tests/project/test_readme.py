"""Commands in the documentation: each one exists and accepts the options shown."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from helpers.command_lines import parse

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = (
    "README.md", "README.pt-BR.md", "CONTRIBUTING.md",
    *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))),
)  # fmt: skip
_SPEC = "recipe: demo\nrun_name: pets\noutput: gs://my-bucket/runs\n"


def lines_to_type() -> Iterator[str]:
    """Yield every line of code blocks without a language, and every command between backticks."""
    for name in DOCUMENTS:
        text = (ROOT / name).read_text(encoding="utf-8")
        for language, block in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            yield from [] if language else block.splitlines()
        text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
        yield from re.findall(r"`((?:trainer|scripts/|\./scripts/)[^`]* [^`]*)`", text.replace("\n", " "))


def commands_of(program: str) -> list[list[str]]:
    """Return the distinct argument lists for `program` in the documentation, without comments."""
    commands = [shlex.split(line, comments=True) for line in lines_to_type() if line.startswith(program)]
    return [list(words) for words in dict.fromkeys(tuple(words[1:]) for words in commands if len(words) > 1)]


def test_documented_commands_are_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Data given as an argument must exist.
    (tmp_path / "my_photos").mkdir()
    (tmp_path / "my.zip").touch()
    monkeypatch.chdir(tmp_path)
    commands = commands_of("trainer ")
    assert len(commands) > 60
    for words in commands:
        try:
            parse(words)
        except click.exceptions.Exit:
            pass  # --help
        except click.MissingParameter:
            assert len(words) == 1, words  # a command mentioned without its arguments
        except click.UsageError as error:
            pytest.fail(f"{shlex.join(words)}: {error.format_message()}")


def test_invalid_command_would_be_detected() -> None:
    with pytest.raises(click.UsageError):
        parse(["submit", "gke", "--acelerator", "cpu"])
    with pytest.raises(AssertionError):
        parse(["sumbit", "gke"])


def test_documented_jobs_pass_a_dry_run(tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text(_SPEC)
    page = (ROOT / "docs" / "release.md").read_text(encoding="utf-8")
    weekly = re.search(r"`weekly\.yaml`.*?^```yaml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert weekly is not None
    (tmp_path / "weekly.yaml").write_text(weekly[1])
    image = next(line for line in lines_to_type() if line.startswith("export TRAINER_IMAGE=")).partition("=")[
        2
    ]
    environment = {**os.environ, "TRAINER_IMAGE": image, "GOOGLE_CLOUD_PROJECT": "my-project"}
    jobs = [
        words
        for words in commands_of("trainer ")
        if words[0] == "submit" and len(words) > 2 and "..." not in words
    ]
    assert len(jobs) >= 9
    for words in jobs:
        done = subprocess.run(
            [sys.executable, "-m", "trainer.cli", *words, "--dry-run"],
            env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{shlex.join(words)}: {done.stderr}"


def test_documented_project_setup_passes_a_dry_run() -> None:
    found = commands_of("scripts/setup_gcp.sh ")
    assert len(found) == 3
    for words in found:
        subprocess.run(
            [ROOT / "scripts" / "setup_gcp.sh", *words, "--dry-run"], check=True, capture_output=True
        )
