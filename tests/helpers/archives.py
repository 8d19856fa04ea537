"""Valid and damaged archives of every supported format, for tests that extract them."""

from __future__ import annotations

import hashlib
import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from trainer.data.archive import extract_archive
from trainer.data.progress import Progress, SilentProgress, SilentTask, Task

MIB = 2**20
FILES = {"pets/cats/1.png": b"cat" * 1000, "pets/dogs/2.png": b"dog" * 2000, "pets/empty.txt": b""}


class Started(SilentProgress):
    """Progress that records whether a task was started, and its messages."""

    def __init__(self) -> None:
        self.any = False
        self.messages: list[str] = []

    def start(self, label: str, total: int | None, unit: str) -> Task:
        self.any = True
        return SilentTask()

    def on_message(self, message: str) -> None:
        self.messages.append(message)


def extract(archive: Path, cache: Path, max_bytes: int = 200 * MIB, progress: Progress | None = None) -> Path:
    sha256 = hashlib.sha256(archive.read_bytes()).hexdigest()
    return extract_archive(archive, sha256, cache, max_bytes, progress or SilentProgress())


def tree(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def left_behind(cache: Path) -> list[str]:
    """Return the files in the cache other than locks."""
    return [str(path) for path in cache.rglob("*") if path.is_file() and not path.name.endswith(".lock")]


def make_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def unstated_zip(path: Path, files: dict[str, bytes], encoding: str) -> Path:
    """Write a zip whose names are in a legacy encoding, without the UTF-8 flag."""
    names = {chr(65 + number) * len(name.encode(encoding)): name for number, name in enumerate(files)}
    make_zip(path, {plain: files[name] for plain, name in names.items()})
    data = path.read_bytes()
    for plain, name in names.items():
        data = data.replace(plain.encode(), name.encode(encoding))
    path.write_bytes(data)
    return path


def make_tar(
    path: Path, members: list[tuple[tarfile.TarInfo, bytes]] | dict[str, bytes], mode: str = "w"
) -> Path:
    if isinstance(members, dict):
        members = [(tarfile.TarInfo(name), data) for name, data in members.items()]
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for member, data in members:
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def v7_tar(path: Path, files: dict[str, bytes]) -> Path:
    """Write a tar in the V7 format, which predates ustar."""
    blocks = b""
    for name, data in files.items():
        head = bytearray(512)
        head[: len(name)] = name.encode()
        head[100:108], head[124:136], head[148:156] = b"0000644\0", b"%011o\0" % len(data), b" " * 8
        head[148:156] = b"%06o\0 " % sum(head)
        blocks += bytes(head) + data + bytes(-len(data) % 512)
    path.write_bytes(blocks + bytes(1024))
    return path


MAKERS: dict[str, Callable[[Path], Path]] = {
    "zip": lambda folder: make_zip(folder / "a.zip", FILES),
    "tar": lambda folder: make_tar(folder / "a.tar", FILES),
    "tar.gz": lambda folder: make_tar(folder / "a.tar.gz", FILES, "w:gz"),
    "old tar": lambda folder: v7_tar(folder / "a.tar", FILES),
}
