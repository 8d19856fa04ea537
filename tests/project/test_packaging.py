"""Lock files with pinned, hashed packages, and the contents of the wheel."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
VARIANTS = ("cpu", "gpu", "tpu")
LOCKS = (*VARIANTS, "test")


@pytest.mark.parametrize("name", LOCKS)
def test_lock_pins_hashed_packages_without_locations(name: str) -> None:
    text = (ROOT / f"requirements-{name}.lock").read_text()
    assert not re.search(r"https?:|file:|--(extra-)?index-url|--find-links|\s/|@ ", text)
    blocks = re.split(r"\n(?=[a-z])", text.strip())
    unpinned = [block for block in blocks if not re.match(r"[a-z0-9-]+==\S+ .*\\\n +--hash=sha256:", block)]
    assert unpinned == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [("cpu", ["tensorflow-cpu"]), ("gpu", ["tensorflow"]), ("tpu", ["tensorflow-tpu"]), ("test", [])],
)
def test_lock_contains_exactly_one_tensorflow(name: str, expected: list[str]) -> None:
    text = (ROOT / f"requirements-{name}.lock").read_text()
    assert re.findall(r"^(tensorflow(?:-\w+)?|tf-keras)==", text, re.MULTILINE) == expected


@pytest.mark.parametrize("name", VARIANTS)
def test_lock_of_variant_contains_build_requirements(name: str) -> None:
    assert re.search(r"^setuptools==", (ROOT / f"requirements-{name}.lock").read_text(), re.MULTILINE)


@pytest.mark.parametrize("name", ["gpu", "test"])
def test_package_has_same_version_in_all_locks(name: str) -> None:
    versions = pins_of("cpu")
    shared = {package: pins for package, pins in pins_of(name).items() if package in versions}
    assert {package: pins for package, pins in shared.items() if not pins <= versions[package]} == {}


def pins_of(name: str) -> dict[str, set[str]]:
    """Return the versions of each package in a lock; several if they differ by Python version."""
    text = (ROOT / f"requirements-{name}.lock").read_text()
    pins: dict[str, set[str]] = {}
    for package, version in re.findall(r"^(\S+)==(\S+)", text, re.MULTILINE):
        pins.setdefault(package, set()).add(version)
    return pins


@pytest.mark.engine
def test_wheel_contains_whole_package_and_does_not_require_tensorflow(tmp_path: Path) -> None:
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
