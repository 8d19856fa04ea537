"""Extraction and fine-tuning of a pretrained backbone against minimal equivalents; used by bench.py.

Provides pairs of functions that measure images/s, and the seconds of a training on cached features.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from bench.step import rate_of_steps, rate_of_training
from trainer.cli.environment import cache_folder
from trainer.data.dataset import Dataset
from trainer.data.load import load_dataset
from trainer.data.progress import SilentProgress
from trainer.data.sampler import steps_per_epoch
from trainer.distributed.devices import find_cluster
from trainer.model.pretrained import get_backbone, get_head
from trainer.spec import RunSpec, load_spec
from trainer.training import build_learner
from trainer.training.inference import Inference

_IMAGES = 512
"""Images per measurement of the extraction."""
_BATCH = 8
"""Batch size of the bare forward pass: the fastest one on a CPU."""
_MODEL = "model={family: pretrained, backbone: efficientnet-lite0}"
"""The weights are not loaded, because they do not affect the speed."""


def prepare_extraction(folder: Path) -> tuple[Callable[[], float], Callable[[], float]]:
    """Return functions that measure feature extraction and a compiled forward pass, in images/s."""
    spec, dataset = _load(folder, ["data.image_size=224", "train.epochs=1"])
    cluster = find_cluster()
    learner = build_learner(spec, len(dataset.class_names), 1, cluster)
    backbone = get_backbone(learner.fill_inference_model())
    inference, rows = Inference(backbone, cluster), np.arange(_IMAGES)
    batch = tf.constant(dataset.train.pixels.gather(rows[:_BATCH]), tf.float32)
    forward = tf.function(lambda: backbone(batch, training=False), autograph=False)

    def extraction() -> float:
        started = time.perf_counter()
        for start in range(0, _IMAGES, _BATCH):
            inference.batch(dataset.train, rows[start : start + _BATCH])
        return _IMAGES / (time.perf_counter() - started)

    def bare() -> float:
        started = time.perf_counter()
        for _ in range(0, _IMAGES, _BATCH):
            forward().numpy()
        return _IMAGES / (time.perf_counter() - started)

    for measure in (extraction, bare):
        measure()  # compiles, and decodes the images
    return extraction, bare


def prepare_finetuning(folder: Path, precision: str) -> tuple[Callable[[], float], Callable[[], float]]:
    """Return functions that measure training of the last stage and its bare step, in images/s."""
    settings = [
        "data.image_size=128", "optimizer.name=adamw", f"train.precision={precision}", "train.epochs=1000",
        "train.validate_every_epochs=1000", "train.global_batch_size=32",
        "train.finetune={probe: steps, frozen_epochs: 0, last_stage_epochs: 1000}",
    ]  # fmt: skip
    spec, dataset = _load(folder, settings)
    return rate_of_training(spec, dataset), _bare_step(spec, dataset)


def _bare_step(spec: RunSpec, dataset: Dataset) -> Callable[[], float]:
    size = spec.train.global_batch_size
    steps = steps_per_epoch(len(dataset.train.labels), size)
    learner = build_learner(spec, len(dataset.class_names), steps, find_cluster())
    weights, optimizer = learner.phases[0].weights, keras.optimizers.AdamW(0.001)
    backbone, head = get_backbone(learner.model), get_head(learner.model)
    optimizer.build(weights)
    images = tf.constant(dataset.train.pixels.gather(np.arange(size)), tf.float32)
    labels = tf.constant(dataset.train.labels[:size])

    @tf.function
    def step() -> tf.Tensor:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([weight.value for weight in weights])
            logits = head(backbone(images, training=False), training=True)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
        optimizer.apply(tape.gradient(loss, [weight.value for weight in weights]), weights)
        return loss

    return rate_of_steps(step, size)


def cached_seconds(data: str) -> tuple[float, float, float]:
    """Return the seconds of a first training, of a second one with another seed, and of the second process.

    Both use the recipe auto. The training time runs from the log line that describes the model to the end of
    the last epoch.
    """
    with tempfile.TemporaryDirectory() as folder:
        first, second = (_timed_run(data, Path(folder), seed) for seed in (0, 1))
    return first[0], *second


def _timed_run(data: str, folder: Path, seed: int) -> tuple[float, float]:
    command = [
        sys.executable, "-m", "trainer.task", "--recipe", "auto", "--data", data, "--output", str(folder),
        "--run-name", f"seed-{seed}", "--set", f"seed={seed}",
    ]  # fmt: skip
    began, moments = time.monotonic(), {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        for line in process.stdout or ():
            for name in ('"event": "epoch"', "pretrained, "):
                if name in line:
                    moments[name] = time.monotonic()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed with exit code {process.returncode}")
    return moments['"event": "epoch"'] - moments["pretrained, "], time.monotonic() - began


def _load(folder: Path, settings: list[str]) -> tuple[RunSpec, Dataset]:
    spec = load_spec(settings=[_MODEL, *settings], overrides={"data.source": str(folder)})
    return spec, load_dataset(spec.data, cache_folder(), SilentProgress(), lambda rejected: None)
