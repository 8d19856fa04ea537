"""Features of a frozen backbone, computed once per image and cached on local disk.

A feature is the pooled output of the backbone, float32 [width]. The cache key covers the images, the weights
of the backbone and everything else that changes the values, so a restart, or a second run on the same data,
reads the cached features.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from trainer import __version__
from trainer.data.dataset import Dataset, Split
from trainer.data.progress import Progress, Task
from trainer.distributed.devices import Cluster
from trainer.errors import TemporaryError, UsageError
from trainer.model.pretrained import get_backbone, get_head, preprocessing_of
from trainer.spec import PretrainedSpec, RunSpec
from trainer.storage.local import prepare_folder, write_bytes
from trainer.training.inference import Inference, Rows

Array = NDArray[np.float32]

_FLOAT_BYTES = 4
_ROWS_PER_FILE = 1000
"""Rows per file of the cache; after a crash about as many rows are recomputed."""


class FeatureView:
    """Features of a split that replace its pixels; see `trainer.data.image_store.Subset`."""

    def __init__(self, features: Array) -> None:
        self._features = features
        self.shape: tuple[int, ...] = features.shape

    def cache(self, indices: Rows) -> None:
        """Do nothing: all features are in memory."""

    def prefetch(self, *passes: Rows) -> None:
        """Do nothing: all features are in memory."""

    def gather(self, indices: Rows) -> Array:
        """Return copies of the features at `indices`, integers [n], as float32 [n, width]."""
        return self._features[indices]


class Features:
    """Features of all splits of a dataset, computed by one backbone."""

    def __init__(
        self,
        backbone: keras.Model,
        head: keras.Model,
        cluster: Cluster,
        description: Sequence[str],
        cache_dir: Path,
        progress: Progress,
    ) -> None:
        """backbone, head: the two parts of the inference model, in float32.

        description: everything except the weights that changes the features; part of the cache key.
        """
        self._backbone, self._head, self._progress = backbone, head, progress
        self._inference = Inference(backbone, cluster)
        self._description = description
        self._folder = cache_dir / "features"
        self._digest = ""
        self._by_split: dict[str, Array] = {}

    def are_current(self) -> bool:
        """Return whether the features in memory were computed with the current weights of the backbone."""
        return self._digest == _compute_digest(self._backbone)

    def logits(self, features: Array) -> tf.Tensor:
        """Return the logits of the head for `features`, float32 [images, classes]."""
        return self._head(tf.constant(features), training=False)

    def of(self, split: Split, is_stopped: Callable[[], bool] = lambda: False) -> Array:
        """Return the features of all images of `split`, float32 [images, width], on every process.

        They are computed with the current weights of the backbone. Raises StoppedError once `is_stopped`
        returns True on any process; features computed before that stay in the cache.
        """
        if not self.are_current():
            self._digest, self._by_split = _compute_digest(self._backbone), {}
        if split.name not in self._by_split:
            self._by_split[split.name] = self._read_or_compute(split, is_stopped)
        return self._by_split[split.name]

    def _read_or_compute(self, split: Split, is_stopped: Callable[[], bool]) -> Array:
        key = hashlib.sha256("\n".join([*self._description, self._digest, split.name]).encode()).hexdigest()
        cache = FeatureCache(self._folder / key, self._progress)
        task = self._progress.start(f"Features of {split.name} images", len(split.items), "images")
        try:
            compute = _with_cache(cache, lambda rows: self._inference.batch(split, rows), task)
            return self._inference.outputs(split, is_stopped, compute)
        finally:
            cache.flush()
            task.finish()


def build_features(
    spec: RunSpec, model: keras.Model, dataset: Dataset, cluster: Cluster, cache_dir: Path, progress: Progress
) -> Features | None:
    """Return the features of the frozen backbone of `model`, the inference model.

    Returns None if `model` has no backbone that is frozen in the first epochs. Also returns None if the
    features don't fit into data.cache_mib, unless the head is fitted by logistic regression, which needs
    them.
    """
    if not isinstance(spec.model, PretrainedSpec) or spec.finetune is None or not spec.finetune.frozen:
        return None
    backbone = get_backbone(model)
    images = sum(len(split.items) for split in dataset.splits.values())
    is_small = images * backbone.output_shape[-1] * _FLOAT_BYTES <= spec.data.cache_mib << 20
    if not (is_small or spec.finetune.probe == "logistic"):
        return None
    description = describe_features(spec, backbone, dataset, cluster)
    return Features(backbone, get_head(model), cluster, description, cache_dir, progress)


def describe_features(spec: RunSpec, backbone: keras.Model, dataset: Dataset, cluster: Cluster) -> list[str]:
    """Return everything except the weights of the backbone that changes the features."""
    name = spec.model.backbone if isinstance(spec.model, PretrainedSpec) else ""
    return [
        __version__, tf.__version__, keras.__version__, dataset.digest,
        json.dumps(spec.data.describe_pixels(), separators=(",", ":"), ensure_ascii=False), name,
        preprocessing_of(backbone),
        cluster.device_kind,
        f"{cluster.strategy.num_replicas_in_sync} {cluster.process_index} {cluster.process_count}",
    ]  # fmt: skip


class FeatureCache:
    """Cache of feature rows in files, in the order in which this process computes them.

    If a file cannot be written, caching is disabled and training continues.
    """

    def __init__(self, folder: Path, progress: Progress) -> None:
        self._folder, self._progress = folder, progress
        self._pending: list[Array] = []
        self._position = 0
        self._is_writable = True
        with self._optional():
            prepare_folder(folder)
        self._cached = _read_parts(folder)
        self._stored = len(self._cached)

    def take(self, count: int) -> Array | None:
        """Return the next `count` cached rows.

        Returns None if any of them is missing; no later rows are then taken from the cache.
        """
        start, self._position = self._position, self._position + count
        if self._position <= len(self._cached):
            return self._cached[start : self._position]
        if start < len(self._cached):
            self._cached, self._stored = self._cached[:start], start
        return None

    def add(self, rows: Array) -> None:
        """Append rows; a file is written once at least _ROWS_PER_FILE rows are pending."""
        if not self._is_writable:
            return
        self._pending.append(rows)
        if sum(map(len, self._pending)) >= _ROWS_PER_FILE:
            self.flush()

    def flush(self) -> None:
        """Write the pending rows to a file."""
        if not self._pending:
            return
        rows, buffer = np.concatenate(self._pending), io.BytesIO()
        np.save(buffer, rows, allow_pickle=False)
        self._pending = []
        with self._optional():
            write_bytes(self._folder / f"{self._stored:012d}.npy", buffer.getvalue())
        self._stored += len(rows)

    @contextmanager
    def _optional(self) -> Iterator[None]:
        """Disable the cache and print the reason if the block fails to write."""
        try:
            yield
        except (TemporaryError, UsageError) as error:
            self._is_writable = False
            self._progress.on_message(
                f"The features cannot be cached; a restart computes them again. {error}"
            )


def _with_cache(cache: FeatureCache, compute: Callable[[Rows], Array], task: Task) -> Callable[[Rows], Array]:
    def compute_rows(rows: Rows) -> Array:
        features = cache.take(len(rows))
        if features is None:
            features = compute(rows)
            cache.add(features)
        task.advance(len(rows))
        return features

    return compute_rows


def _read_parts(folder: Path) -> Array:
    """Return all consecutive cached rows, up to the first gap.

    Files may overlap, because a crash, or another process that uses the same cache, can end a file at another
    row.
    """
    parts: list[Array] = []
    stored = 0
    for path in sorted(file for file in folder.glob("*.npy") if file.stem.isdecimal()):
        start = int(path.stem)
        if start > stored:
            break
        part = _read(path)
        if part is None or start + len(part) <= stored:
            continue
        parts.append(part[stored - start :])
        stored = start + len(part)
    return np.concatenate(parts) if parts else np.zeros((0, 0), np.float32)


def _read(path: Path) -> Array | None:
    try:
        part = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return part if part.dtype == np.float32 and part.ndim == 2 and len(part) else None


def _compute_digest(backbone: keras.Model) -> str:
    """Return the SHA-256 of all weights as 64 hex digits."""
    digest = hashlib.sha256()
    for weight in backbone.weights:
        digest.update(np.ascontiguousarray(weight.numpy()).data)
    return digest.hexdigest()
