"""Features of the images of an audit, by the default pretrained backbone."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from trainer import __version__
from trainer.data.dataset import Split
from trainer.data.progress import Progress
from trainer.data.weights import find_weights
from trainer.distributed.devices import Cluster
from trainer.model.build import build_inference_model
from trainer.model.pretrained import get_backbone, get_head, preprocessing_of
from trainer.model.weights import load_weights
from trainer.spec import PIXEL_SETTINGS, PretrainedSpec
from trainer.spec.schema import DataSpec
from trainer.training.features import Features

SIZE = 224
PIXELS = {"image_size": SIZE, "resize": "crop", "crop_fraction": 0.875, "interpolation": "bicubic"}
"""Settings of the data for which the backbone was trained."""


def compute_features(
    splits: Mapping[str, Split], data: DataSpec, cluster: Cluster, cache_dir: Path, progress: Progress
) -> dict[str, NDArray[np.float32]]:
    """Return the features of all images by split, float32 [images, width], cached in `cache_dir`.

    `data` has the settings in PIXELS. cluster: of `find_cluster`, which must precede any other use of
    TensorFlow. Raises the errors of `find_weights` if there are no weights.
    """
    spec = PretrainedSpec()
    with cluster.strategy.scope():
        model = build_inference_model(spec, 2, SIZE, data.channels)
    backbone = get_backbone(model)
    if (file := find_weights(spec, cache_dir, progress)) is not None:
        load_weights(backbone, file)
    description = [
        __version__, tf.__version__, keras.__version__, _digest(splits),
        data.model_dump_json(include={*PIXEL_SETTINGS}), spec.backbone, preprocessing_of(backbone),
        cluster.device_kind,
    ]  # fmt: skip
    features = Features(backbone, get_head(model), cluster, description, cache_dir, progress)
    return {name: features.of(split) for name, split in splits.items()}


def _digest(splits: Mapping[str, Split]) -> str:
    """Return the SHA-256 over names and contents of all images."""
    digest = hashlib.sha256()
    for name, split in splits.items():
        for row, item in enumerate(split.items):
            # Shards have no hashes of the contents; a random key never matches.
            content = split.contents[row] if split.contents else secrets.token_hex(8)
            digest.update(f"{name}\0{item.name}\0{content}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
