"""Golden predictions: verification of an exported model in a fresh process.

The exported model must reproduce the probabilities of the trained model for the same images. The fresh
process runs a copy of `reload_check.py`, alone in a folder, so it cannot depend on this package or on the
state of this process.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from trainer.data.convert import as_file
from trainer.data.dataset import Split
from trainer.data.decode import decode_and_resize
from trainer.errors import OutOfMemoryError, TrainerError
from trainer.export.served import Confidence, probabilities_of
from trainer.model.features import build_feature_model
from trainer.spec import PixelFormat
from trainer.storage.temporary import temporary_folder
from trainer.training.objective import SINGLE, Objective

TOLERANCE = 1e-5
_COUNT = 20
_KNOWN_RANKS = 2
"""Number of calibration images that rounding may move to the other side of a score."""
_SCRIPT = Path(__file__).with_name("reload_check.py")


@dataclass(frozen=True)
class Golden:
    """Encoded images and the predictions that a model must reproduce."""

    images: tuple[bytes, ...]
    pixels: np.ndarray[Any, Any]
    """float32 [count, height, width, channels] in 0..255."""
    probabilities: np.ndarray[Any, Any]
    """float32 [count, classes]."""
    known: np.ndarray[Any, Any] | None = None
    """float32 [count], p-values of the detector; None if the model has none."""
    known_tolerance: float = 0.0
    """Largest difference of a p-value: that of a few calibration images whose scores are nearly equal."""
    lost: int = 0
    """Number of images that the source no longer has unchanged; their pixels are encoded instead."""


def make_golden(
    model: keras.Model,
    split: Split,
    objective: Objective = SINGLE,
    confidence: Confidence | None = None,
    form: PixelFormat | None = None,
) -> Golden:
    """Return up to 20 images spread evenly over `split`, and the predictions of `model`.

    confidence: what the model is exported with; by default a temperature of 1 and no detector. form:
    conversion of images to pixels in the exported model; None if it leaves pixels of its size as they are.
    The pixels of an image that the source has lost are encoded, and so converted a second time.

    Predictions are computed from the cached pixels, on the CPU like the check: GPUs round float32 products to
    TF32. They are computed one image at a time, because several large images may not fit in memory.
    """
    rows = np.unique(np.linspace(0, len(split.labels) - 1, _COUNT).round().astype(np.int64))
    pixels = split.pixels.gather(rows).astype(np.float32)
    encoded = [_encoded(split, int(row)) for row in rows]
    # The source may be unavailable when training ends, which must not fail the run.
    images = tuple(
        bytes(tf.io.encode_png(image.astype(np.uint8)).numpy()) if data is None else data
        for data, image in zip(encoded, pixels, strict=True)
    )
    confidence = confidence or Confidence()
    outputs = build_feature_model(model)
    with tf.device("/CPU:0"):
        for number, data in enumerate(encoded):
            if data is None and form is not None:
                pixels[number] = decode_and_resize(tf.constant(images[number]), form).numpy()
        pairs = [outputs(image[None], training=False) for image in pixels]
        logits = tf.concat([pair[1] for pair in pairs], axis=0)
        probabilities = probabilities_of(objective, logits, confidence.temperature).numpy()
        known, tolerance = _recognize(confidence, tf.concat([pair[0] for pair in pairs], axis=0))
    return Golden(images, pixels, probabilities, known, tolerance, encoded.count(None))


def _recognize(confidence: Confidence, features: tf.Tensor) -> tuple[np.ndarray[Any, Any] | None, float]:
    """Return the p-values of features, and their largest difference in another process."""
    detector = confidence.detector
    if detector is None:
        return None, 0.0
    known: np.ndarray[Any, Any] = detector.p_values(detector.scores(features)).numpy()
    return known, _KNOWN_RANKS / (1 + len(detector.calibration))


def verify_export(path: Path, golden: Golden) -> float:
    """Load the SavedModel at `path` in a fresh process; return the largest difference of a probability.

    Raises TrainerError if the process fails or a probability differs by more than TOLERANCE, OutOfMemoryError
    if the process is killed, TemporaryError if the disk is full.
    """
    process = _run_reload_check(path, golden)
    if process.returncode == -signal.SIGKILL:
        raise OutOfMemoryError(
            "The process that verifies the exported model was killed, probably because the system ran out of "
            "memory.",
            "Run the same command on a machine with more memory; the run resumes.",
            received=f"signal {int(signal.SIGKILL)}",
        )
    if process.returncode != 0:
        raise TrainerError(
            "The exported model cannot be loaded in a fresh process.",
            "Run the same command again. If the error persists, report it as a bug.",
            received=f"{process.stderr.strip()[-500:]}",
        )
    differences = json.loads(process.stdout.splitlines()[-1])
    difference = float(differences["largest_difference"])
    if not differences["largest_known_difference"] <= golden.known_tolerance + TOLERANCE:
        raise TrainerError(
            f"The exported model at {path} recognizes known images differently from the trained model.",
            "It is not published. Report this as a bug.",
            received=f"a p-value that differs by {differences['largest_known_difference']:.2g}",
        )
    if not difference <= TOLERANCE:
        raise TrainerError(
            f"The exported model at {path} predicts differently from the trained model.",
            "It is not published. Report this as a bug.",
            received=f"a probability that differs by {difference:.2g}, at most {TOLERANCE:g} is allowed",
        )
    return difference


def _run_reload_check(path: Path, golden: Golden) -> subprocess.CompletedProcess[str]:
    """Return the finished process, which prints the largest difference as JSON."""
    with temporary_folder() as folder:
        arrays, script = folder / "golden.npz", folder / _SCRIPT.name
        shutil.copyfile(_SCRIPT, script)
        np.savez(
            arrays,
            pixels=golden.pixels,
            probabilities=golden.probabilities,
            known=np.zeros(0) if golden.known is None else golden.known,
            lengths=np.array([len(image) for image in golden.images]),
            images=np.frombuffer(b"".join(golden.images), np.uint8),
        )
        return subprocess.run(
            [sys.executable, str(script), str(path.absolute()), str(arrays)],
            capture_output=True,
            text=True,
            check=False,
        )


def _encoded(split: Split, row: int) -> bytes | None:
    """Return the encoded image as read for training, or None if the source no longer has it unchanged."""
    item = split.items[row]
    try:
        data = item.read()
    except (OSError, TrainerError):
        return None
    if split.contents and hashlib.sha256(data).hexdigest() != split.contents[row]:
        return None
    return as_file(data, item.encoding)
