"""The scripts and the lock files: set-up as real bash, pip and venv, on a tiny project without a network."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
VARIANTS = ("cpu", "gpu", "tpu")
LOCKS = (*VARIANTS, "test")

# A build backend of one function, so that the tiny project installs without setuptools.
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
    """A tiny project with the real scripts, and the wheels that its locks name."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "a project"
        self.venv = self.root / ".venv"
        self.wheels = folder / "wheels"
        self.bin = folder / "bin"
        for each in (self.root, self.wheels, self.bin):
            each.mkdir()
        shutil.copytree(ROOT / "scripts", self.root / "scripts")
        (self.root / "setup.py").write_text("")
        (self.root / "pyproject.toml").write_text(PYPROJECT)
        (self.root / "backend.py").write_text(BACKEND)
        (self.root / "requirements-cpu.lock").write_text(write_wheel(self.wheels, "1"))
        (self.root / "requirements-gpu.lock").write_text(write_wheel(self.wheels, "2"))

    def environment(self, **more: str) -> dict[str, str]:
        """Return an environment in which pip finds this project's wheels and no index."""
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "TRAINER_"))
        }
        pip = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.wheels)}
        path = os.pathsep.join([str(self.bin), str(Path(sys.executable).parent), os.environ["PATH"]])
        return {**kept, **pip, "PATH": path, **more}

    def start(self, *flags: str, **more: str) -> subprocess.Popen[str]:
        """Start train.sh from another folder, as the leader of a process group."""
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
        """Run train.sh and return its exit code, output and errors."""
        process = self.start(*flags, **more)
        output, errors = process.communicate(timeout=120)
        return process.returncode, output, errors

    def installed(self) -> str:
        """Return which version of tiny .venv has."""
        python = str(self.venv / "bin" / "python")
        code = "import tiny; print(tiny.VERSION)"
        return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()

    def move(self, name: str) -> None:
        """Give the project's folder another name."""
        self.root = self.root.rename(self.root.with_name(name))
        self.venv = self.root / ".venv"

    def put_on_path(self, name: str, script: str) -> None:
        """Make `name` a command that comes before all others."""
        path = self.bin / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A project whose .venv is not made yet."""
    return Project(tmp_path)


@pytest.fixture(scope="module")
def first_call(tmp_path_factory: pytest.TempPathFactory) -> tuple[Project, tuple[int, str, str]]:
    """A project that has been set up once, and how that went: exit code, output and errors."""
    project = Project(tmp_path_factory.mktemp("ready"))
    return project, project.train("--recipe", "a b")


@pytest.fixture
def ready(first_call: tuple[Project, tuple[int, str, str]]) -> Project:
    """The project that has been set up; a test that changes it leaves it complete."""
    return first_call[0]


def log_of(project: Project) -> str:
    return (project.venv / "install.log").read_text()


def commands_without_python(project: Project) -> Mapping[str, str]:
    """Return an environment whose PATH has what the scripts call, but no Python."""
    for name in ("bash", "dirname", "flock", "sha256sum", "tee", "tail", "rm", "mkdir", "touch"):
        found = shutil.which(name)
        assert found is not None, name
        (project.bin / name).symlink_to(found)
    return {"PATH": str(project.bin)}


def test_set_up_says_what_it_does_and_passes_the_flags_on(
    first_call: tuple[Project, tuple[int, str, str]],
) -> None:
    project, (code, output, errors) = first_call
    assert (code, output) == (0, "trained with ['train', '--recipe', 'a b']\n"), errors
    assert errors.startswith("set-up    making .venv from requirements-cpu.lock, Python 3.")
    assert errors.splitlines()[-1].startswith("set-up    done in ")
    assert project.installed() == "1"


def test_second_call_installs_nothing_and_says_nothing(ready: Project) -> None:
    before = log_of(ready)
    code, output, errors = ready.train()
    assert (code, output, errors) == (0, "trained with ['train']\n", "")
    assert log_of(ready) == before


def test_a_changed_lock_is_installed(ready: Project) -> None:
    (ready.root / "requirements-cpu.lock").write_text(write_wheel(ready.wheels, "3"))
    assert ready.train()[0] == 0
    assert ready.installed() == "3"


def test_a_changed_setup_installs_only_the_project_again(ready: Project) -> None:
    before = log_of(ready)
    (ready.root / "setup.py").write_text("# changed\n")
    assert ready.train()[0] == 0
    added = log_of(ready).removeprefix(before)
    assert "trainer" in added
    assert "tiny" not in added


def test_a_project_that_was_moved_is_set_up_again(ready: Project) -> None:
    ready.move("moved")
    code, output, errors = ready.train()
    assert (code, output) == (0, "trained with ['train']\n"), errors
    assert "making .venv" in errors


def test_a_gpu_that_answers_gets_the_gpu_lock(project: Project) -> None:
    project.put_on_path("nvidia-smi", "echo 'GPU 0: Some GPU'")
    assert project.train()[0] == 0
    assert project.installed() == "2"


def test_a_driver_without_a_gpu_gets_the_cpu_lock(ready: Project) -> None:
    ready.put_on_path("nvidia-smi", "echo 'No devices were found'; exit 6")
    code, _, errors = ready.train()
    (ready.bin / "nvidia-smi").unlink()
    assert (code, errors) == (0, "")


def test_an_interrupted_set_up_is_started_over(project: Project) -> None:
    process = project.start()
    deadline = time.monotonic() + 60
    while not (project.venv / "pyvenv.cfg").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (project.venv / "done-cpu").exists()
    code, output, errors = project.train()
    assert (code, output) == (0, "trained with ['train']\n"), errors


def test_two_at_once_make_one(project: Project) -> None:
    both = [project.start(), project.start()]
    ends = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], ends
    assert [output for output, _ in ends] == ["trained with ['train']\n"] * 2
    assert sum("making .venv" in errors for _, errors in ends) == 1
    assert sum("waiting for another set-up" in errors for _, errors in ends) == 1


def test_a_package_that_is_not_the_locked_one_is_refused_and_the_log_shown(project: Project) -> None:
    lock = project.root / "requirements-cpu.lock"
    lock.write_text(re.sub(r"sha256:.*", f"sha256:{'0' * 64}", lock.read_text()))
    code, output, errors = project.train()
    assert (code, output) == (1, "")
    assert "THESE PACKAGES DO NOT MATCH THE HASHES" in errors
    assert errors.splitlines()[-1].startswith(
        "Error: Installing requirements-cpu.lock failed; above is the end of"
    )


def test_a_venv_of_someone_else_is_left_alone(project: Project) -> None:
    project.venv.mkdir()
    (project.venv / "precious").write_text("mine")
    code, _, errors = project.train()
    assert (code, len(errors.splitlines())) == (2, 1)
    assert "There is a .venv that this script did not make" in errors
    assert (project.venv / "precious").read_text() == "mine"


def test_without_a_python_it_says_which_to_install(project: Project) -> None:
    code, _, errors = project.train(**commands_without_python(project))
    assert (code, errors) == (
        2,
        "Error: No Python 3.10 to 3.13 that can make virtual environments. Received: no python3\n",
    )
    assert not project.venv.exists()


def test_another_python_is_taken_where_python3_is_too_old(project: Project) -> None:
    path = commands_without_python(project)
    project.put_on_path("python3", "echo 3.9")
    # Says that it fits, and makes nothing: only the choice matters here.
    project.put_on_path("python3.12", "echo 3.12")
    _, _, errors = project.train(**path)
    assert errors.startswith("set-up    making .venv from requirements-cpu.lock, 3.12, once\n")


def test_a_python_without_venv_is_named_with_the_package_it_lacks(project: Project) -> None:
    path = commands_without_python(project)
    (project.bin / "ensurepip.py").write_text("raise ImportError\n")
    project.put_on_path("python3", f'PYTHONPATH="{project.bin}" exec "{sys.executable}" "$@"')
    code, _, errors = project.train(**path)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert (code, len(errors.splitlines())) == (2, 1)
    assert f"python3 ({version}) lacks venv or ensurepip: apt-get install python{version}-venv" in errors


def test_an_unknown_variant_is_an_error(project: Project) -> None:
    code, _, errors = project.train(TRAINER_VARIANT="cuda")
    assert (code, errors) == (2, "Error: TRAINER_VARIANT must be cpu, gpu or tpu. Received: cuda\n")
    assert not project.venv.exists()


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_names_exact_hashed_packages_and_no_place(name: str) -> None:
    text = (ROOT / f"requirements-{name}.lock").read_text()
    assert not re.search(r"https?:|file:|--(extra-)?index-url|--find-links|\s/|@ ", text)
    blocks = re.split(r"\n(?=[a-z])", text.strip())
    unpinned = [block for block in blocks if not re.match(r"[a-z0-9-]+==\S+ .*\\\n +--hash=sha256:", block)]
    assert unpinned == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [("cpu", ["tensorflow-cpu"]), ("gpu", ["tensorflow"]), ("tpu", ["tensorflow-tpu"]), ("test", [])],
)
def test_a_lock_has_its_own_tensorflow_and_no_other(name: str, expected: list[str]) -> None:
    text = (ROOT / f"requirements-{name}.lock").read_text()
    assert re.findall(r"^(tensorflow(?:-\w+)?|tf-keras)==", text, re.MULTILINE) == expected


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_has_what_installs_the_project_itself(name: str) -> None:
    assert re.search(r"^setuptools==", (ROOT / f"requirements-{name}.lock").read_text(), re.MULTILINE)


@pytest.mark.parametrize("name", ["gpu", "test"])
def test_a_package_has_one_version_in_all_locks(name: str) -> None:
    versions = pins_of("cpu")
    shared = {package: pins for package, pins in pins_of(name).items() if package in versions}
    assert {package: pins for package, pins in shared.items() if not pins <= versions[package]} == {}


def pins_of(name: str) -> dict[str, set[str]]:
    """Return the versions of each package of a lock: more than one where Pythons differ."""
    text = (ROOT / f"requirements-{name}.lock").read_text()
    pins: dict[str, set[str]] = {}
    for package, version in re.findall(r"^(\S+)==(\S+)", text, re.MULTILINE):
        pins.setdefault(package, set()).add(version)
    return pins


@pytest.mark.engine
def test_the_wheel_holds_the_whole_package_and_needs_no_tensorflow(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(ROOT / "trainer", source / "trainer", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    subprocess.run(
        [
            sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet",
            "--wheel-dir", str(tmp_path), str(source),
        ],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    with zipfile.ZipFile(next(tmp_path.glob("trainer-*.whl"))) as wheel:
        packed = {name for name in wheel.namelist() if name.startswith("trainer/")}
        metadata = wheel.read(next(name for name in wheel.namelist() if name.endswith("METADATA"))).decode()
    files = {path for path in (source / "trainer").rglob("*") if path.is_file()}
    assert packed == {path.relative_to(source).as_posix() for path in files}
    needed = re.findall(r"^Requires-Dist: ([\w-]+)(.*)$", metadata, re.MULTILINE)
    assert "click" in dict(needed)
    assert {name for name, rest in needed if "tensorflow" in name and "extra ==" not in rest} == set()
