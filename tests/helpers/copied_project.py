"""Copy of this project for building an image from it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
SINGLE_FILES = (".dockerignore", ".gitignore", "setup.py", "pyproject.toml", "README.md", "LICENSE")


def copied_project(folder: Path) -> Path:
    """Copy this project to `folder` as a git repository with everything committed, and return it."""
    for name in ("docker", "trainer", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (*ROOT.glob("requirements-*.lock"), *map(ROOT.joinpath, SINGLE_FILES)):
        shutil.copy(path, folder)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(folder)]
    for words in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message", "all"]):
        subprocess.run([*git, *words], check=True)
    return folder
