"""Resolution of a data source to a local folder or file.

A source is a folder, a file, an archive, a file://, https:// or gs:// URL, or embedded:NAME. The result is a
local path for a layout reader. Archives are extracted.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path

from trainer.data.archive import archive_kind, extract_archive
from trainer.data.archive_errors import read_error
from trainer.data.bucket import fetch_bucket, fetch_objects
from trainer.data.digests import checksum_problem, file_digests
from trainer.data.download import download, forget_version
from trainer.data.embedded import embedded_folder
from trainer.data.progress import Progress
from trainer.data.readers.import_files import SUFFIXES as IMPORT_SUFFIXES
from trainer.data.readers.import_files import Buckets
from trainer.data.readers.parquet import Extraction
from trainer.data.readers.webdataset import is_webdataset
from trainer.data.transfer import Patience
from trainer.errors import DataError, UsageError
from trainer.sanitize import shown_address
from trainer.spec import DataSpec
from trainer.storage import prepare_folder
from trainer.storage.store import is_bucket, require_two_slashes, without_scheme

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_PATIENCE = Patience()


def fetch_source(
    source: str,
    checksum: str | None,
    cache_dir: Path,
    max_extracted_bytes: int,
    progress: Progress,
    patience: Patience = _PATIENCE,
    outline: bool = False,
) -> Path:
    """Return the local folder or file that contains the data of `source`.

    A folder is returned unchanged. An archive is extracted, and its folder is returned. Any other file is
    returned, downloaded if necessary. `checksum` ("md5:..." or "sha256:...", hex digits) is that of the file
    or archive. With `outline`, the images of a folder in a bucket are placeholder files. Raises DataError
    (missing, damaged, unsafe, wrong checksum, untrusted server), UsageError (unsupported kind of source, the
    cache is not writable), TemporaryError (network, full disk).
    """
    _require_checksum(checksum)
    if source.startswith("embedded:"):
        _refuse_checksum(source, checksum)
        prepare_folder(cache_dir)
        return embedded_folder(source.removeprefix("embedded:"), cache_dir, progress)
    scheme = _SCHEME.match(source)
    if scheme and scheme[1].lower() != "file":
        _require_remote(scheme[1].lower(), source)
        prepare_folder(cache_dir)
        if scheme[1].lower() != "gs":
            return _downloaded(source, checksum, cache_dir, max_extracted_bytes, progress, patience)
        path = fetch_bucket(source, cache_dir, max_extracted_bytes, progress, outline)
    else:
        path = _local_path(source)
    if _is_folder(path, source):
        _refuse_checksum(source, checksum)
        return path
    prepare_folder(cache_dir)
    if checksum and (problem := checksum_problem(path, checksum, cache_dir, progress)):
        raise DataError(
            f"The file has the wrong checksum: {path}. Use the right file or correct data.checksum. {problem}"
        )
    return _opened(path, cache_dir, max_extracted_bytes, progress)


def _downloaded(
    url: str, checksum: str | None, cache_dir: Path, max_bytes: int, progress: Progress, patience: Patience
) -> Path:
    path = download(url, checksum, cache_dir, max_bytes, progress, patience)
    try:
        return _opened(path, cache_dir, max_bytes, progress)
    except DataError as error:
        forget_version(path)
        raise DataError(f"{error} (downloaded from {shown_address(url)})") from error


def require_source(source: str) -> None:
    """Raise the errors of `fetch_source` for a missing local source or an unsupported one.

    Remote sources are not checked for existence.
    """
    scheme = _SCHEME.match(source)
    if scheme and scheme[1].lower() != "file":
        _require_remote(scheme[1].lower(), source)
    elif not source.startswith("embedded:"):
        _is_folder(_local_path(source), source)


def buckets_of(spec: DataSpec, cache_dir: Path, progress: Progress, outline: bool = False) -> Buckets:
    """Return the downloader for bucket images that import files refer to; see `fetch_objects`."""

    def fetch(uris: Sequence[str]) -> Mapping[str, Path]:
        prepare_folder(cache_dir)
        return fetch_objects(uris, cache_dir, spec.max_extracted_mib << 20, progress, outline)

    is_import_file = is_bucket(spec.source) and spec.source.lower().endswith(IMPORT_SUFFIXES)
    return Buckets(fetch, spec.source.rpartition("/")[0] if is_import_file else "")


def extraction_of(spec: DataSpec, cache_dir: Path, progress: Progress) -> Extraction:
    """Return the settings for extracting the images of Parquet files."""
    return Extraction(cache_dir, spec.max_extracted_mib << 20, progress)


def _require_remote(scheme: str, source: str) -> None:
    """Raise UsageError unless `scheme` is http, https or gs; `download` rejects http."""
    if scheme not in ("http", "https", "gs"):
        remedy = "; `aws s3 presign` makes an https:// URL of a file" if scheme == "s3" else ""
        raise UsageError(
            f"{scheme}:// is not supported{remedy}. Images come from a folder, an archive, a file://, "
            f"https:// or gs:// URL.",
            received=f"{shown_address(source)!r}",
        )


def _local_path(source: str) -> Path:
    """Return the local path for a path or a file:// URL. Raises UsageError."""
    if not _SCHEME.match(source) and not os.path.exists(source):
        require_two_slashes(source, "https://host/images.zip")
    return Path(os.path.expanduser(without_scheme(source)))


def _is_folder(path: Path, source: str) -> bool:
    """Return True for a folder and False for a regular file.

    Raises DataError for anything else, TemporaryError for an I/O error.
    """
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):
        raise DataError(
            "There is no such folder or file. Check data.source.", received=f"{shown_address(source)!r}"
        ) from None
    except OSError as error:
        raise read_error(repr(shown_address(source)), error) from error
    if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
        raise DataError(
            "The source is neither a folder nor a plain file.", received=f"{shown_address(source)!r}"
        )
    return stat.S_ISDIR(mode)


def _opened(path: Path, cache_dir: Path, max_bytes: int, progress: Progress) -> Path:
    # A WebDataset is read in place.
    if archive_kind(path) is None or is_webdataset(path):
        return path
    digest = file_digests(path, ["sha256"], cache_dir, progress)["sha256"]
    return extract_archive(path, digest, cache_dir, max_bytes, progress)


def _require_checksum(checksum: str | None) -> None:
    if checksum and not re.fullmatch(r"md5:[0-9a-fA-F]{32}|sha256:[0-9a-fA-F]{64}", checksum):
        raise UsageError("A checksum is md5: and 32, or sha256: and 64 hex digits.", received=f"{checksum!r}")


def _refuse_checksum(source: str, checksum: str | None) -> None:
    # Ignoring the checksum would suggest that it was verified.
    if checksum:
        raise UsageError(
            "A checksum is of one file; for a folder set data.checksum to null.",
            received=f"{shown_address(source)!r}",
        )
