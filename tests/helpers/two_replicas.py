"""Comparison of steps on one replica and on two logical CPUs that stand in for two GPUs; prints JSON.

Run as a subprocess, because TensorFlow fixes the devices of a process when it first lists them.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import tensorflow as tf

from helpers.small_training import split
from trainer.augment.transforms import EpochView
from trainer.distributed.devices import Cluster, find_cluster
from trainer.evaluate.evaluator import Evaluator
from trainer.spec import RunSpec, load_spec
from trainer.training import build_learner
from trainer.training.phase_work import put_on_devices
from trainer.training.prefetch import BatchBlock
from trainer.training.step import Sums, TrainStep

SETTINGS = [
    "data.image_size=16",
    "model={family: residual, stem_filters: 4, filters: [8], blocks: [1]}",
    "model={dropout: 0.3, stochastic_depth: 0.3}",
    "train={global_batch_size: 7, ema_decay: 0.5, label_smoothing: 0.1, precision: float32}",
    "optimizer={name: sgd, momentum: 0.9, learning_rate: 0.05}",
]
AUGMENTED = [
    "augment={flip: horizontal, crop: {}, mixup: 0.3, cutmix: 0.3, brightness: 0.1, noise: 0.1}",
    "optimizer.clip_norm=0.5",
]

AIRBENCH = [
    "model={family: airbench, filters: [8], dropout: 0.3}",
    "augment.flip=alternating",
    "optimizer={name: muon, momentum: 0.6, unit_kernels: true}",
]


def main() -> None:
    """Print the differences for batches that do not divide evenly: plain, augmented and airbench."""
    tf.config.set_visible_devices([], "GPU")
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    one = find_cluster()
    two = replace(one, strategy=tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]))
    plain, augmented, airbench = (
        load_spec(settings=[*SETTINGS, *more]) for more in ([], AUGMENTED, AIRBENCH)
    )
    results: dict[str, Any] = {}
    others: dict[str, list[np.ndarray]] = {}
    for name, spec in (("plain", plain), ("augmented", augmented), ("airbench", airbench)):
        (sums, weights), (other_sums, others[name]) = trained(spec, one), trained(spec, two)
        results[name] = {
            "weights": difference(weights, others[name]),
            "loss": max(abs(a.loss - b.loss) for a, b in zip(sums, other_sums, strict=True)),
            "images": [sums.images for sums in other_sums],
        }
    results["device cache"] = difference(others["plain"], trained(plain, two, has_device_cache=True)[1])
    results["predictions"] = predictions_differ(plain, two)
    print(json.dumps(results))


def difference(ones: list[np.ndarray], others: list[np.ndarray]) -> float:
    """Return the largest absolute difference."""
    return max(float(np.abs(a - b).max()) for a, b in zip(ones, others, strict=True))


def trained(
    spec: RunSpec, cluster: Cluster, has_device_cache: bool = False
) -> tuple[list[Sums], list[np.ndarray]]:
    """Run five steps, the last with one image; return their sums and the averaged weights."""
    learner = build_learner(spec, 3, 10, cluster)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, 7, 16, 16, 3)).astype(np.uint8)
    cached = None
    if has_device_cache:
        cached = put_on_devices(images.reshape(-1, *images.shape[2:]), cluster.strategy)
        images = np.arange(28, dtype=np.int32).reshape(4, 7)
    train_step = TrainStep(learner, spec, np.array([1.0, 2.0, 0.5], np.float32), cluster, cached)
    positions = np.tile(np.arange(7, dtype=np.int32), (4, 1))
    labels = rng.integers(0, 3, (4, 7)).astype(np.int32)
    mirrored, view = labels == 1, EpochView(16, 16)
    sums = train_step.run(BatchBlock(5, images, labels, positions, 7, mirrored), view)
    last = (images[:1, :1], labels[:1, :1], positions[:1, :1], 1, mirrored[:1, :1])
    sums += train_step.run(BatchBlock(9, *last), view)
    return sums, [weight.numpy() for weight in learner.fill_inference_model().weights]


def predictions_differ(spec: RunSpec, cluster: Cluster) -> float:
    """Return the largest difference between predictions on all devices and on one, for 237 images."""
    model = build_learner(spec, 2, 10, cluster).fill_inference_model()
    images = split("test", 2 * 100 + 37, 0)
    alone, together = (
        Evaluator(model, cluster_or_none).predict(images, ("dark", "light")).probabilities
        for cluster_or_none in (None, cluster)
    )
    assert alone.shape == (237, 2)
    assert len(np.unique(alone, axis=0)) > 200
    return float(np.abs(alone - together).max())


if __name__ == "__main__":
    main()
