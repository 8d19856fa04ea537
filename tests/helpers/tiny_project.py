"""Tiny project with the real scripts that installs without a network."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# A one-function build backend, so that the project installs without setuptools.
BACKEND = """
import zipfile
def build_editable(folder, config_settings=None, metadata_directory=None):
    info = "trainer-1.dist-info"
    with zipfile.ZipFile(f"{folder}/trainer-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny_trainer.py", "import sys; main = lambda: print('trained with', sys.argv[1:])")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\\nName: trainer\\nVersion: 1\\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(f"{info}/entry_points.txt", "[console_scripts]\\ntrainer = tiny_trainer:main\\n")
        wheel.writestr(f"{info}/RECORD", "")
    return "trainer-1-py3-none-any.whl"
"""

PYPROJECT = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'


def write_wheel(folder: Path, version: str) -> str:
    """Write a wheel of the package `tiny` and return its line for a lock file."""
    path, info = folder / f"tiny-{version}-py3-none-any.whl", f"tiny-{version}.dist-info"
    content = {
        "tiny.py": f"VERSION = {version!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: tiny\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(path, "w") as wheel:
        record = ""
        for name, text in content.items():
            wheel.writestr(name, text)
            digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
            record += f"{name},sha256={digest},{len(text)}\n"
        wheel.writestr(f"{info}/RECORD", record)
    return f"tiny=={version} --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"


class Project:
    """Tiny project with the real scripts and the wheels of its lock files."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "a project"
        self.venv = self.root / ".venv"
        self.wheels = folder / "wheels"
        self.bin = folder / "bin"
        for folder in (self.root, self.wheels, self.bin):
            folder.mkdir()
        shutil.copytree(ROOT / "scripts", self.root / "scripts")
        (self.root / "setup.py").write_text("")
        (self.root / "pyproject.toml").write_text(PYPROJECT)
        (self.root / "backend.py").write_text(BACKEND)
        (self.root / "requirements-cpu.lock").write_text(write_wheel(self.wheels, "1"))
        (self.root / "requirements-gpu.lock").write_text(write_wheel(self.wheels, "2"))

    def environment(self, **more: str) -> dict[str, str]:
        """Return an environment in which pip uses only this project's wheels, no index."""
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "TRAINER_"))
        }
        pip = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.wheels)}
        path = os.pathsep.join([str(self.bin), str(Path(sys.executable).parent), os.environ["PATH"]])
        return {**inherited, **pip, "PATH": path, **more}

    def start(self, *flags: str, **more: str) -> subprocess.Popen[str]:
        """Start train.sh from another folder as the leader of a new session."""
        return subprocess.Popen(
            ["bash", str(self.root / "scripts" / "train.sh"), *flags],
            cwd=self.wheels,
            env=self.environment(**more),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def train(self, *flags: str, **more: str) -> tuple[int, str, str]:
        """Run train.sh and return its exit code, stdout and stderr."""
        process = self.start(*flags, **more)
        output, errors = process.communicate(timeout=120)
        return process.returncode, output, errors

    def installed(self) -> str:
        """Return the version of `tiny` in .venv."""
        python = str(self.venv / "bin" / "python")
        code = "import tiny; print(tiny.VERSION)"
        return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()

    def move(self, name: str) -> None:
        """Rename the project folder."""
        self.root = self.root.rename(self.root.with_name(name))
        self.venv = self.root / ".venv"

    def put_on_path(self, name: str, script: str) -> None:
        """Add the command `name` at the front of PATH."""
        path = self.bin / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
