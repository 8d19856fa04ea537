"""Recognition of unknown images with frozen features of a pretrained backbone, beside softmax confidence.

    python scripts/unknown_images.py far --data PETS --others CIFAR
    python scripts/unknown_images.py near --others CIFAR --draws 5
    python scripts/unknown_images.py left-out --others CIFAR --draws 5

PETS is cats_and_dogs_filtered.zip, CIFAR is cifar10_images.zip. `far` separates the validation images of
PETS from eight classes of CIFAR, gratings, noise and crops of the photos of scikit-learn. `near` separates
cats and dogs of CIFAR from its vehicles and its other animals. `left-out` separates six classes of CIFAR from
the other four.

The detector is fitted as in a run: its method is chosen on synthetic images and left-out classes of the
training images, and its level is 5%. Prints the AUROC of each method and of the confidence, and the rejected
shares.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import random
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
VEHICLES, ANIMALS = ("airplane", "automobile", "ship", "truck"), ("bird", "deer", "frog", "horse")
LEVEL = 0.05
SYNTHETIC = 40
GENERATED = 200
SIDE = 224


@dataclass(frozen=True)
class Known:
    """Images of the known classes: features and labels of training images, features of new images."""

    train: Any
    labels: Any
    new: Any
    synthetic: dict[str, Any]


class Backbone:
    """Features of images, which are cached on disk."""

    def __init__(self, cache: Path) -> None:
        from trainer.cli.bootstrap import import_tensorflow, prepare_libraries
        from trainer.cli.environment import cache_folder

        prepare_libraries()
        import_tensorflow()
        import keras

        from trainer.data.progress import SilentProgress
        from trainer.model import build_inference_model
        from trainer.model.pretrained import get_backbone
        from trainer.model.weights import find_weights, load_weights
        from trainer.spec import PretrainedSpec, load_spec
        from trainer.training.inference import Inference

        settings = [
            f"data={{image_size: {SIDE}, resize: crop, crop_fraction: 0.875, interpolation: bicubic}}",
            "model={family: pretrained}",
        ]
        spec = load_spec(settings=settings)
        backbone: keras.Model = get_backbone(build_inference_model(spec.model, 2, SIDE))
        file = None
        if isinstance(spec.model, PretrainedSpec):
            file = find_weights(spec.model, cache_folder(), SilentProgress())
        if file is None:
            raise SystemExit("No pretrained weights are available on this machine.")
        load_weights(backbone, file)
        self.form, self.cache, self.inference = spec.data.pixel_format, cache, Inference(backbone)

    def of_files(self, archive: Path, names: Sequence[str]) -> Any:
        """Return the features of images in an archive, [images, width]."""
        key = hashlib.sha256("\n".join([archive.name, *names]).encode()).hexdigest()[:16]
        path = self.cache / f"{key}.npy"
        if not path.exists():
            self.cache.mkdir(parents=True, exist_ok=True)
            parts = [
                self.of_pixels(self.decode(archive, names[i : i + 64])) for i in range(0, len(names), 64)
            ]
            np.save(path, np.concatenate(parts))
        return np.load(path)

    def decode(self, archive: Path, names: Sequence[str]) -> Any:
        """Return the pixels of images in an archive."""
        import tensorflow as tf

        from trainer.data.decode import decode_and_resize

        with zipfile.ZipFile(archive) as images:
            return np.stack([decode_and_resize(tf.constant(images.read(name)), self.form) for name in names])

    def of_pixels(self, pixels: Any) -> Any:
        """Return the features of pixels, uint8 [images, side, side, 3]."""
        return self.inference.of_pixels(pixels)

    def synthetic(self, archive: Path, names: Sequence[str]) -> dict[str, Any]:
        """Return the features of synthetic images of each kind, made from images in an archive."""
        from trainer.evaluate.synthetic import make_unknown_images

        made = make_unknown_images(self.decode(archive, draw(names, SYNTHETIC, 0)), 0)
        return {kind: self.of_pixels(pixels) for kind, pixels in made.items()}


def draw(names: Sequence[str], count: int, seed: int) -> list[str]:
    """Return a random sample of the names."""
    return random.Random(seed).sample(sorted(names), min(count, len(names)))


def list_images(archive: Path, split: str, label: str) -> list[str]:
    """Return the names of the images of one class."""
    with zipfile.ZipFile(archive) as images:
        paths = [PurePosixPath(name) for name in images.namelist()]
    return sorted(str(path) for path in paths if path.suffix and path.parts[-3:-1] == (split, label))


def main() -> None:
    """Run one experiment and print its figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experiment", choices=["far", "near", "left-out"])
    parser.add_argument("--data", type=Path, help="archive of PETS, for far")
    parser.add_argument("--others", type=Path, required=True, help="archive of CIFAR-10")
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--images", type=int, default=300, help="training images per class of CIFAR")
    parser.add_argument("--new-images", type=int, default=100, help="test images per class of CIFAR")
    parser.add_argument("--cache", type=Path, default=Path("runs/unknown-features"))
    arguments = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, {date.today()}, {arguments.experiment}", flush=True)
    backbone = Backbone(arguments.cache)
    draws = 1 if arguments.experiment == "far" else arguments.draws
    figures = [EXPERIMENTS[arguments.experiment](backbone, arguments, seed) for seed in range(draws)]
    for name in figures[0]:
        values = [draw[name] for draw in figures]
        spread = f", standard deviation {np.std(values, ddof=1):.4f}" if draws > 1 else ""
        print(f"{name:<44} {np.mean(values):.4f}{spread}")


def run_far(backbone: Backbone, arguments: argparse.Namespace, seed: int) -> dict[str, float]:
    """Separate cats and dogs of PETS from images of four other kinds."""
    names = {label: list_images(arguments.data, "train", label) for label in ("cats", "dogs")}
    train = [name for label in names for name in names[label]]
    new = [name for label in names for name in list_images(arguments.data, "validation", label)]
    labels = np.repeat([0, 1], [len(names["cats"]), len(names["dogs"])])
    known = Known(
        backbone.of_files(arguments.data, train),
        labels,
        backbone.of_files(arguments.data, new),
        backbone.synthetic(arguments.data, train),
    )
    others = [name for label in (*VEHICLES, *ANIMALS) for name in _new_names(arguments, label)]
    unknown = {
        "CIFAR, eight classes": backbone.of_files(arguments.others, others),
        "gratings": backbone.of_pixels(make_gratings()),
        "noise": backbone.of_pixels(
            np.random.default_rng(0).integers(0, 256, (GENERATED, SIDE, SIDE, 3)).astype(np.uint8)
        ),
        "photos": backbone.of_pixels(crop_photos()),
    }
    return measure(known, unknown)


def run_near(backbone: Backbone, arguments: argparse.Namespace, seed: int) -> dict[str, float]:
    """Separate cats and dogs of CIFAR from its vehicles and its other animals."""
    known = _known_of(backbone, arguments, ("cat", "dog"), seed)
    return measure(
        known,
        {"vehicles": _new(backbone, arguments, VEHICLES), "animals": _new(backbone, arguments, ANIMALS)},
    )


def run_left_out(backbone: Backbone, arguments: argparse.Namespace, seed: int) -> dict[str, float]:
    """Separate six random classes of CIFAR from the other four."""
    order = random.Random(seed).sample(CLASSES, len(CLASSES))
    known = _known_of(backbone, arguments, order[:6], seed)
    return measure(known, {"left-out classes": _new(backbone, arguments, order[6:])})


def _known_of(backbone: Backbone, arguments: argparse.Namespace, classes: Sequence[str], seed: int) -> Known:
    """Return the known images of CIFAR, with other training images for each seed."""
    names = {label: list_images(arguments.others, "train", label) for label in classes}
    drawn = {label: draw(names[label], arguments.images, seed) for label in classes}
    train = np.concatenate([backbone.of_files(arguments.others, drawn[label]) for label in classes])
    labels = np.repeat(np.arange(len(classes)), [len(drawn[label]) for label in classes])
    synthetic = backbone.synthetic(arguments.others, [name for label in classes for name in drawn[label]])
    return Known(train, labels, _new(backbone, arguments, classes), synthetic)


def _new(backbone: Backbone, arguments: argparse.Namespace, classes: Sequence[str]) -> Any:
    parts = [backbone.of_files(arguments.others, _new_names(arguments, label)) for label in classes]
    return np.concatenate(parts)


def _new_names(arguments: argparse.Namespace, label: str) -> list[str]:
    return draw(list_images(arguments.others, "test", label), arguments.new_images, 0)


def make_gratings() -> Any:
    """Return gratings and checkerboards of random frequency, direction and colours."""
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    images = []
    for _ in range(GENERATED):
        angle, frequency = rng.uniform(0, np.pi), rng.uniform(4, 40)
        wave = np.sin(2 * np.pi * frequency * (x * np.cos(angle) + y * np.sin(angle)))
        if rng.integers(2):
            wave = np.sign(wave * np.sin(2 * np.pi * frequency * (y * np.cos(angle) - x * np.sin(angle))))
        first, second = rng.uniform(0, 255, (2, 3))
        images.append(first + (second - first) * (wave[..., None] + 1) / 2)
    return np.stack(images).astype(np.uint8)


def crop_photos() -> Any:
    """Return random crops of the two photos in scikit-learn, a temple and a flower."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    rng, crops, photos = np.random.default_rng(2), [], load_sample_images().images
    for number in range(GENERATED):
        photo = photos[number % len(photos)]
        side = int(rng.integers(SIDE // 2, min(photo.shape[:2])))
        top, left = (int(rng.integers(0, length - side + 1)) for length in photo.shape[:2])
        crop = Image.fromarray(photo[top : top + side, left : left + side])
        crops.append(np.asarray(crop.resize((SIDE, SIDE), Image.Resampling.BICUBIC)))
    return np.stack(crops)


def measure(known: Known, unknown: dict[str, Any]) -> dict[str, float]:
    """Return the figures of the chosen method, of all methods and of the confidence."""
    from trainer.evaluate.unknown import (
        METHODS,
        choose_method,
        compute_auroc,
        compute_scores,
        fit_detector,
    )
    from trainer.training.probe import fit_probe

    chosen = choose_method(known.train, known.labels, known.synthetic, 0)
    names = [str(number) for number in range(len(known.train))]
    probe = fit_probe(known.train, known.labels, np.ones(known.labels.max() + 1), 5)

    def doubts(features: Any) -> Any:
        logits = features @ probe.kernel + probe.bias
        return -np.exp(logits.max(axis=1) - np.logaddexp.reduce(logits, axis=1))

    figures: dict[str, float] = {}
    for method in METHODS:
        detector = fit_detector(method, known.train, known.labels, names, LEVEL)
        scores = [compute_scores(detector.index, detector.neighbour, known.new)]
        scores += [compute_scores(detector.index, detector.neighbour, images) for images in unknown.values()]
        for kind, others in zip(unknown, scores[1:], strict=True):
            figures[f"{kind}: AUROC, {method}"] = compute_auroc(scores[0], others)
        rejected = [
            1 - float(np.mean(detector.is_accepted(detector.p_values(values.astype(np.float32)))))
            for values in scores
        ]
        figures[f"rejected of known images, {method}"] = rejected[0]
        for kind, share in zip(unknown, rejected[1:], strict=True):
            figures[f"rejected of {kind}, {method}"] = share
        figures[f"chosen: {method}"] = float(method == chosen.method)
        figures[f"size in MB, {method}"] = detector.bytes / 1e6
    for kind, images in unknown.items():
        figures[f"{kind}: AUROC, softmax confidence"] = compute_auroc(doubts(known.new), doubts(images))
    return figures


EXPERIMENTS = {"far": run_far, "near": run_near, "left-out": run_left_out}

if __name__ == "__main__":
    main()
