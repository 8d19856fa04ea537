"""Setup scripts, run with real bash, pip and venv on a tiny project without a network."""

from __future__ import annotations

import ast
import os
import pkgutil
import re
import shutil
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from helpers.tiny_project import Project, write_wheel


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Return a project without a .venv."""
    return Project(tmp_path)


@pytest.fixture(scope="module")
def first_call(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, tuple[int, str, str]]:
    """Return a project after its first setup, and exit code, stdout and stderr of that setup."""
    project = Project(tmp_path_factory.mktemp("ready"))
    return project, project.train("--recipe", "a b")


@pytest.fixture
def ready(first_call: tuple[Project, tuple[int, str, str]]) -> Project:
    """Return the project that is set up; tests that change it must leave it complete."""
    return first_call[0]


def log_of(project: Project) -> str:
    return (project.venv / "install.log").read_text()


def commands_without_python(project: Project) -> Mapping[str, str]:
    """Return an environment whose PATH has the programs that the scripts call, but no Python."""
    for name in ("bash", "dirname", "flock", "sha256sum", "tee", "tail", "rm", "mkdir", "touch"):
        path = shutil.which(name)
        assert path is not None, name
        (project.bin / name).symlink_to(path)
    return {"PATH": str(project.bin)}


def test_setup_reports_progress_and_passes_flags(
    first_call: tuple[Project, tuple[int, str, str]],
) -> None:
    project, (code, output, errors) = first_call
    assert (code, output) == (0, "trained with ['train', '--recipe', 'a b']\n"), errors
    assert errors.startswith("set-up    creating .venv from requirements-cpu.lock, Python 3.")
    assert errors.splitlines()[-1].startswith("set-up    done in ")
    assert project.installed() == "1"


def test_second_call_installs_and_prints_nothing(ready: Project) -> None:
    before = log_of(ready)
    code, output, errors = ready.train()
    assert (code, output, errors) == (0, "trained with ['train']\n", "")
    assert log_of(ready) == before


def test_changed_lock_is_installed(ready: Project) -> None:
    (ready.root / "requirements-cpu.lock").write_text(write_wheel(ready.wheels, "3"))
    assert ready.train()[0] == 0
    assert ready.installed() == "3"


def test_changed_setup_py_reinstalls_only_the_project(ready: Project) -> None:
    before = log_of(ready)
    (ready.root / "setup.py").write_text("# changed\n")
    assert ready.train()[0] == 0
    added = log_of(ready).removeprefix(before)
    assert "trainer" in added
    assert "tiny" not in added


def test_moved_project_is_set_up_again(ready: Project) -> None:
    ready.move("moved")
    code, output, errors = ready.train()
    assert (code, output) == (0, "trained with ['train']\n"), errors
    assert "creating .venv" in errors


def test_available_gpu_selects_gpu_lock(project: Project) -> None:
    project.put_on_path("nvidia-smi", "echo 'GPU 0: Some GPU'")
    assert project.train()[0] == 0
    assert project.installed() == "2"


def test_driver_without_gpu_selects_cpu_lock(ready: Project) -> None:
    ready.put_on_path("nvidia-smi", "echo 'No devices were found'; exit 6")
    code, _, errors = ready.train()
    (ready.bin / "nvidia-smi").unlink()
    assert (code, errors) == (0, "")


def test_interrupted_setup_starts_over(project: Project) -> None:
    process = project.start()
    deadline = time.monotonic() + 60
    while not (project.venv / "pyvenv.cfg").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (project.venv / "done-cpu").exists()
    code, output, errors = project.train()
    assert (code, output) == (0, "trained with ['train']\n"), errors


def test_concurrent_setups_create_one_environment(project: Project) -> None:
    both = [project.start(), project.start()]
    ends = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], ends
    assert [output for output, _ in ends] == ["trained with ['train']\n"] * 2
    assert sum("creating .venv" in errors for _, errors in ends) == 1
    assert sum("waiting for another set-up" in errors for _, errors in ends) == 1


def test_package_with_wrong_hash_is_rejected_with_log(project: Project) -> None:
    lock = project.root / "requirements-cpu.lock"
    lock.write_text(re.sub(r"sha256:.*", f"sha256:{'0' * 64}", lock.read_text()))
    code, output, errors = project.train()
    assert (code, output) == (1, "")
    assert "THESE PACKAGES DO NOT MATCH THE HASHES" in errors
    assert errors.splitlines()[-1].startswith("Error: Installing requirements-cpu.lock failed. The end of ")


def test_foreign_venv_is_not_changed(project: Project) -> None:
    project.venv.mkdir()
    (project.venv / "precious").write_text("mine")
    code, _, errors = project.train()
    assert (code, len(errors.splitlines())) == (2, 1)
    assert "There is a .venv that this script did not create" in errors
    assert (project.venv / "precious").read_text() == "mine"


def test_missing_python_is_reported_with_supported_versions(project: Project) -> None:
    code, _, errors = project.train(**commands_without_python(project))
    assert (code, errors) == (
        2,
        "Error: There is no Python 3.10 to 3.13 that can create virtual environments. Received: no python3\n",
    )
    assert not project.venv.exists()


def test_newer_python_is_used_when_python3_is_too_old(project: Project) -> None:
    path = commands_without_python(project)
    project.put_on_path("python3", "echo 3.9")
    # It reports a supported version but creates no .venv: only the choice is tested.
    project.put_on_path("python3.12", "echo 3.12")
    _, _, errors = project.train(**path)
    assert errors.startswith("set-up    creating .venv from requirements-cpu.lock, 3.12, once\n")


def test_python_without_venv_is_reported_with_missing_package(project: Project) -> None:
    path = commands_without_python(project)
    (project.bin / "ensurepip.py").write_text("raise ImportError\n")
    project.put_on_path("python3", f'PYTHONPATH="{project.bin}" exec "{sys.executable}" "$@"')
    code, _, errors = project.train(**path)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert (code, len(errors.splitlines())) == (2, 1)
    assert f"python3 ({version}) lacks venv or ensurepip: apt-get install python{version}-venv" in errors


def test_unknown_variant_is_rejected(project: Project) -> None:
    code, _, errors = project.train(TRAINER_VARIANT="cuda")
    assert (code, errors) == (2, "Error: TRAINER_VARIANT must be cpu, gpu or tpu. Received: cuda\n")
    assert not project.venv.exists()


def test_imports_of_scripts_exist_in_package() -> None:
    names = [
        f"{node.module}.{alias.name}"
        for path in (Path(__file__).parents[2] / "scripts").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("trainer")
        for alias in node.names
    ]
    assert len(names) > 20
    for name in names:
        pkgutil.resolve_name(name)
