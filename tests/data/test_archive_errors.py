"""Real I/O errors and real lack of memory while data is read: neither is damage of the data."""

from __future__ import annotations

import errno
import io
import os
import resource
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from helpers.archives import FILES, MAKERS, make_zip

from trainer.data.archive import archive_kind, unpack_tar, unpack_zip, zip_encoding
from trainer.data.archive_errors import reading
from trainer.data.digests import file_digests
from trainer.data.extractor import Unpacker
from trainer.data.ingest import ImageDecoder
from trainer.data.items import Item
from trainer.data.progress import SilentProgress
from trainer.errors import DataError, TemporaryError
from trainer.spec.schema import DataSpec

UNREADABLE = Path("/proc/self/mem")
"""A file that can be opened; reading its first byte fails with EIO."""


@contextmanager
def no_more_descriptors() -> Iterator[None]:
    """Let every attempt to open a file fail with EMFILE."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def unpacker(folder: Path) -> Unpacker:
    return Unpacker("a", folder, 2**30)


READERS: dict[str, Callable[[Path, Path], object]] = {
    "zip": lambda path, folder: unpack_zip(path, unpacker(folder), SilentProgress()),
    "names of a zip": lambda path, folder: zip_encoding(path),
    "tar": lambda path, folder: unpack_tar(path, False, unpacker(folder), SilentProgress()),
    "tar.gz": lambda path, folder: unpack_tar(path, True, unpacker(folder), SilentProgress()),
    "format": lambda path, folder: archive_kind(path),
    "digest": lambda path, folder: file_digests(path, ["sha256"], folder, SilentProgress()),
}


@pytest.mark.parametrize("reader", ["tar", "tar.gz", "format"])
def test_io_error_is_temporary(tmp_path: Path, reader: str) -> None:
    with pytest.raises(TemporaryError, match=r"could not be read: Input/output error\. Try again") as error:
        READERS[reader](UNREADABLE, tmp_path)
    assert error.value.received == UNREADABLE


@pytest.mark.parametrize("reader", READERS)
def test_lack_of_file_descriptors_is_temporary(tmp_path: Path, reader: str) -> None:
    archive = MAKERS[reader if reader in MAKERS else "zip"](tmp_path)
    with no_more_descriptors(), pytest.raises(TemporaryError, match="Too many open files"):
        READERS[reader](archive, tmp_path / "folder")


def test_io_error_that_zipfile_replaces_by_its_own_error_is_temporary(tmp_path: Path) -> None:
    class FailingDisk(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    data = make_zip(tmp_path / "a.zip", FILES).read_bytes()
    with pytest.raises(TemporaryError, match="Input/output error"), reading(tmp_path / "a.zip"):
        zipfile.ZipFile(FailingDisk(data))


@pytest.mark.parametrize("reader", ["zip", "tar", "format"])
def test_folder_in_place_of_the_archive_is_a_data_error(tmp_path: Path, reader: str) -> None:
    (tmp_path / "a.zip").mkdir()
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        READERS[reader](tmp_path / "a.zip", tmp_path / "folder")


def test_lack_of_memory_is_not_damage(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("cat.png", b"cat" * 1000)
    code = (
        "import re, resource, sys; from pathlib import Path\n"
        "from trainer.data.archive import extract_archive; from trainer.data.progress import SilentProgress\n"
        "used = int(re.search(r'VmSize:\\s*(\\d+)', Path('/proc/self/status').read_text())[1]) << 10\n"
        # The LZMA decoder allocates 8 MiB.
        "resource.setrlimit(resource.RLIMIT_AS, (used + (4 << 20),) * 2)\n"
        "try:\n"
        "    extract_archive(Path(sys.argv[1]), '0' * 64, Path(sys.argv[2]), 2**30, SilentProgress())\n"
        "except BaseException as error:\n"
        "    print(type(error).__name__)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "a.zip"), str(tmp_path / "cache")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "MemoryError\n"


def test_lack_of_file_descriptors_does_not_reject_images(tmp_path: Path) -> None:
    (tmp_path / "cat.png").write_bytes(b"")
    items = [Item("cat.png", "cat", None, tmp_path / "cat.png")]
    decoder = ImageDecoder(items, DataSpec(source=str(tmp_path)), SilentProgress())
    with no_more_descriptors(), pytest.raises(TemporaryError, match="Too many open files"):
        decoder.decode_first(np.arange(1), lambda number, pixels: None)
