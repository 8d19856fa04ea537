"""Resolution of a data source to a local folder or file, and the list of its images.

A source is a folder, a file, an archive, a file://, https:// or gs:// URL, or embedded:NAME. Archives are
extracted. An embedded data set ships with a dependency, needs no network, and is written to the cache once.
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
from trainer.data.corrections import apply_corrections
from trainer.data.digests import file_digests, find_mismatch
from trainer.data.download import RetryPolicy, download, forget_version
from trainer.data.groups import with_groups
from trainer.data.progress import Progress
from trainer.data.readers import SourceContents, read_layout
from trainer.data.readers.import_files import SUFFIXES as IMPORT_SUFFIXES
from trainer.data.readers.import_files import Buckets
from trainer.data.readers.parquet import Extraction
from trainer.data.readers.webdataset import is_webdataset
from trainer.errors import DataError, UsageError
from trainer.sanitize import shown_address
from trainer.spec import DataSpec
from trainer.storage import build_once, prepare_folder, translate_errors
from trainer.storage.store import is_bucket, require_two_slashes, without_scheme

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_RETRY_POLICY = RetryPolicy()
_MAX_TABLE_BYTES = 1 << 30


def fetch_source(
    source: str,
    checksum: str | None,
    cache_dir: Path,
    max_extracted_bytes: int,
    progress: Progress,
    retry_policy: RetryPolicy = _RETRY_POLICY,
    placeholders: bool = False,
) -> Path:
    """Return the local folder or file that contains the data of `source`.

    A folder is returned unchanged. An archive is extracted, and its folder is returned. Any other file is
    returned, downloaded if necessary. `checksum` ("md5:..." or "sha256:...", hex digits) is that of the file
    or archive. With `placeholders`, images in a bucket are placeholder files. Raises DataError (missing,
    damaged, unsafe, wrong checksum, untrusted server), UsageError (unsupported kind of source, the cache is
    not writable), TemporaryError (network, full disk).
    """
    _require_checksum(checksum)
    if source.startswith("embedded:"):
        _require_no_checksum(source, checksum)
        prepare_folder(cache_dir)
        return embedded_folder(source.removeprefix("embedded:"), cache_dir, progress)
    scheme = _SCHEME.match(source)
    if scheme and scheme[1].lower() != "file":
        _require_remote(scheme[1].lower(), source)
        prepare_folder(cache_dir)
        if scheme[1].lower() != "gs":
            return _download_and_extract(
                source, checksum, cache_dir, max_extracted_bytes, progress, retry_policy
            )
        path = fetch_bucket(source, cache_dir, max_extracted_bytes, progress, placeholders)
    else:
        path = _local_path(source)
    if _is_folder(path, source):
        _require_no_checksum(source, checksum)
        return path
    prepare_folder(cache_dir)
    if checksum:
        _require_match(path, checksum, cache_dir, progress)
    return _extract_if_archive(path, cache_dir, max_extracted_bytes, progress)


def _require_match(path: Path, checksum: str, cache_dir: Path, progress: Progress) -> None:
    if mismatch := find_mismatch(path, checksum, cache_dir, progress):
        raise DataError(
            f"The file has the wrong checksum: {path}. Expected {checksum}.",
            "Use the right file, or correct data.checksum.",
            received=mismatch,
        )


def _download_and_extract(
    url: str,
    checksum: str | None,
    cache_dir: Path,
    max_bytes: int,
    progress: Progress,
    retry_policy: RetryPolicy,
) -> Path:
    path = download(url, checksum, cache_dir, max_bytes, progress, retry_policy)
    try:
        return _extract_if_archive(path, cache_dir, max_bytes, progress)
    except DataError as error:
        forget_version(path)
        received = f"{error.received} (downloaded from {shown_address(url)})"
        raise DataError(error.problem, error.remedy, received) from error


def list_images(
    spec: DataSpec, cache_dir: Path, progress: Progress, placeholders: bool = False
) -> SourceContents:
    """Fetch the source of `spec` and return its images, without reading them.

    See `fetch_source` and `read_layout`. With `placeholders`, images in a bucket are placeholder files.
    """
    max_bytes = spec.max_extracted_mib << 20
    root = fetch_source(spec.source, spec.checksum, cache_dir, max_bytes, progress, placeholders=placeholders)
    buckets = build_buckets(spec, cache_dir, progress, placeholders)
    extraction = Extraction(cache_dir, max_bytes, progress)
    contents = read_layout(root, spec.layout, buckets, extraction, spec.labels, _group_column(spec))
    files = (_fetch_table(uri, cache_dir, progress) for uri in (spec.exclude, spec.relabel))
    return with_groups(apply_corrections(contents, *files), spec.group)


def _group_column(spec: DataSpec) -> str | None:
    kind, _, name = (spec.group or "").partition(":")
    return name if kind == "column" else None


def _fetch_table(uri: str | None, cache_dir: Path, progress: Progress) -> Path | None:
    return None if uri is None else fetch_file(uri, cache_dir, _MAX_TABLE_BYTES, progress)


def fetch_file(
    uri: str, cache_dir: Path, max_bytes: int, progress: Progress, retry_policy: RetryPolicy = _RETRY_POLICY
) -> Path:
    """Return the local path of one file, a path or a file://, https:// or gs:// URL; it may not exist.

    Raises the errors of `download` and `fetch_bucket`.
    """
    scheme = _SCHEME.match(uri)
    if scheme is None or scheme[1].lower() == "file":
        return _local_path(uri)
    _require_remote(scheme[1].lower(), uri)
    prepare_folder(cache_dir)
    if scheme[1].lower() == "gs":
        return fetch_bucket(uri, cache_dir, max_bytes, progress)
    return download(uri, None, cache_dir, max_bytes, progress, retry_policy)


def require_source(source: str) -> None:
    """Raise the errors of `fetch_source` for a missing local source or an unsupported one.

    Remote sources are not checked for existence.
    """
    scheme = _SCHEME.match(source)
    if scheme and scheme[1].lower() != "file":
        _require_remote(scheme[1].lower(), source)
    elif not source.startswith("embedded:"):
        _is_folder(_local_path(source), source)


def build_buckets(spec: DataSpec, cache_dir: Path, progress: Progress, placeholders: bool = False) -> Buckets:
    """Return the downloader for bucket images that import files refer to; see `fetch_objects`."""

    def fetch(uris: Sequence[str]) -> Mapping[str, Path]:
        prepare_folder(cache_dir)
        return fetch_objects(uris, cache_dir, spec.max_extracted_mib << 20, progress, placeholders)

    is_import_file = is_bucket(spec.source) and spec.source.lower().endswith(IMPORT_SUFFIXES)
    return Buckets(fetch, spec.source.rpartition("/")[0] if is_import_file else "")


def _require_remote(scheme: str, source: str) -> None:
    """Raise UsageError unless `scheme` is http, https or gs; `download` rejects http."""
    if scheme not in ("http", "https", "gs"):
        presign = "Create an https:// URL of the file with `aws s3 presign`. " if scheme == "s3" else ""
        raise UsageError(
            f"{scheme}:// is not supported.",
            f"{presign}Use a folder, an archive, or a file://, https:// or gs:// URL.",
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
            "There is no such folder or file.", "Check data.source.", received=f"{shown_address(source)!r}"
        ) from None
    except OSError as error:
        raise read_error(repr(shown_address(source)), error) from error
    if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
        raise DataError(
            "The source is neither a folder nor a regular file.",
            "Check data.source.",
            received=f"{shown_address(source)!r}",
        )
    return stat.S_ISDIR(mode)


def _extract_if_archive(path: Path, cache_dir: Path, max_bytes: int, progress: Progress) -> Path:
    # A WebDataset is read in place.
    if archive_kind(path) is None or is_webdataset(path):
        return path
    digest = file_digests(path, ["sha256"], cache_dir, progress)["sha256"]
    return extract_archive(path, digest, cache_dir, max_bytes, progress)


def _require_checksum(checksum: str | None) -> None:
    if checksum and not re.fullmatch(r"md5:[0-9a-fA-F]{32}|sha256:[0-9a-fA-F]{64}", checksum):
        raise UsageError(
            "data.checksum is not a valid checksum.",
            "Use md5: and 32 hex digits, or sha256: and 64 hex digits.",
            received=f"{checksum!r}",
        )


def _require_no_checksum(source: str, checksum: str | None) -> None:
    # Ignoring the checksum would suggest that it was verified.
    if checksum:
        raise UsageError(
            "Only a single file can have a checksum.",
            "Set data.checksum to null.",
            received=f"{shown_address(source)!r}",
        )


DIGIT_NAMES = tuple("0123456789")


def embedded_folder(name: str, cache_dir: Path, progress: Progress) -> Path:
    """Return the folder of the embedded data set `name`; "digits" is the only one.

    "digits" contains scikit-learn's 1,797 handwritten digits of 8 x 8 pixels, with grey values scaled from
    0..16 to 0..255, as `<0..9>/NNNN.png`, where NNNN is the index in the set. Raises UsageError (unknown
    name, the cache is not writable), TemporaryError (full disk).
    """
    if name != "digits":
        raise UsageError(
            "There is no such embedded data set.",
            "Use embedded:digits.",
            received=f"{f'embedded:{name}'!r}",
        )

    def build(folder: Path) -> None:
        _write_digits(folder, progress)

    return build_once(cache_dir / "embedded" / "digits", build)


def _write_digits(folder: Path, progress: Progress) -> None:
    # Imported here because scikit-learn takes a second to import and is rarely needed.
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    pixels = np.rint(images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    task = progress.start("Writing the embedded digits", len(pixels), "images")
    with translate_errors(folder):
        for name in DIGIT_NAMES:
            (folder / name).mkdir()
        for number, (image, label) in enumerate(zip(pixels, labels, strict=True)):
            # Uncompressed, so that the bytes, and the split derived from them, do not depend on the version
            # of zlib.
            Image.fromarray(image).save(
                folder / DIGIT_NAMES[int(label)] / f"{number:04d}.png", compress_level=0
            )
            task.advance(1)
    task.finish()
