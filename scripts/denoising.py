"""Effect of noise removal on images with synthetic noise: PSNR, and accuracy of the recipe auto.

    pip install scikit-image
    python scripts/denoising.py --data cats_and_dogs_filtered.zip --train 500 --held-out 300 --seeds 3

Compares no filter, data.denoise and non-local means of scikit-image (Buades et al. 2005). Gaussian noise is
added to the image at its own size, as a camera would. Each seed draws its own images and its own noise. The
settings of both filters are chosen by the PSNR on training images that no head is trained on. A head is
trained on clean images or on images with the same noise, always with the filter that the tested images have.
Prints accuracies, and exact McNemar tests against no filter over the tested images of all seeds, adjusted for
their number (Holm).
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import os
import platform
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

Pixels = NDArray[np.uint8]
Filter = Callable[[Pixels], Pixels]
"""Maps uint8 [height, width, 3] to the same shape."""
LEVELS = (0, 10, 25, 50)
"""Standard deviations of the noise, of 255."""
STEPS, STRENGTHS, FACTORS = (1, 2, 3, 5, 7, 10), (0.0, 0.1, 0.2), (0.4, 0.6, 0.8, 1.0)
_CHOICE_IMAGES = 40
_BATCH = 8


@dataclass
class Source:
    """Encoded images and labels, and what is needed to compute features."""

    form: Any
    backbone: Any
    train: list[Any]
    held_out: list[Any]
    train_labels: NDArray[np.int32]
    held_out_labels: NDArray[np.int32]


def main() -> None:
    """Choose the settings, then print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--train", type=int, default=500, help="training images of each seed")
    parser.add_argument("--held-out", type=int, default=300, help="tested images of each seed")
    arguments = parser.parse_args()
    source = read_source(arguments.data)
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, {date.today()}: {arguments.seeds} seeds, each with "
        f"{arguments.train} training and {arguments.held_out} tested images",
        flush=True,
    )
    order = np.random.default_rng(0).permutation(len(source.train))
    filters = choose_filters(source, order[:_CHOICE_IMAGES])
    tested = np.random.default_rng(1).permutation(len(source.held_out))
    trained = order[_CHOICE_IMAGES:]
    rights: dict[tuple[str, int, str], list[NDArray[np.bool_]]] = {}
    for seed in range(arguments.seeds):
        # Disjoint draws, so that the tested images of all seeds are independent.
        train = trained[seed * arguments.train : (seed + 1) * arguments.train]
        held_out = tested[seed * arguments.held_out : (seed + 1) * arguments.held_out]
        for key, right in measure_seed(source, filters, train, held_out, seed).items():
            rights.setdefault(key, []).append(right)
            print(f"seed {seed} {key[0]:<20} sigma {key[1]:>2} {key[2]:<15} {right.mean():.4f}", flush=True)
    print_tests(rights, list(filters))


def read_source(data: str) -> Source:
    """Return the images of `data` and the backbone of the recipe auto with its weights."""
    from trainer.cli.bootstrap import import_tensorflow, prepare_libraries
    from trainer.cli.config import choose_settings
    from trainer.cli.console import Console
    from trainer.cli.environment import cache_folder

    prepare_libraries()
    import_tensorflow()
    from trainer.data.load import load_dataset
    from trainer.distributed.devices import find_cluster
    from trainer.model.pretrained import get_backbone
    from trainer.model.weights import find_weights, load_weights
    from trainer.spec import PretrainedSpec, load_spec
    from trainer.training import build_learner

    with Console(30.0, stderr=True) as console:
        spec = load_spec(recipe="auto", overrides={"data.source": data})
        spec = choose_settings(spec, cache_folder(), console)
        dataset = load_dataset(spec.data, cache_folder(), console, lambda rejected: None)
        model = build_learner(spec, len(dataset.class_names), 1, find_cluster()).fill_inference_model()
        if not isinstance(spec.model, PretrainedSpec):
            raise SystemExit("No pretrained weights are available on this machine.")
        if (file := find_weights(spec.model, cache_folder(), console)) is not None:
            load_weights(get_backbone(model), file)
    train, held_out = dataset.train, dataset.held_out
    return Source(
        spec.data.pixel_format, get_backbone(model), list(train.items), list(held_out.items), train.labels,
        held_out.labels,
    )  # fmt: skip


def read_noisy(source: Source, item: Any, sigma: int, seed: int, before: Filter | None = None) -> Pixels:
    """Return the resized pixels of an item with noise that was added at its own size.

    before: filter that is applied at that size.
    """
    import tensorflow as tf

    from trainer.data.decode import decode_image, resize_image

    image = decode_image(tf.constant(item.read())).numpy()
    if sigma:
        noise = np.random.default_rng([seed, sigma, zlib.crc32(item.name.encode())]).normal(
            0.0, sigma, image.shape
        )
        image = np.clip(np.rint(image + noise), 0, 255).astype(np.uint8)
    if before is not None:
        image = before(image)
    return np.asarray(resize_image(tf.constant(image), source.form))


def diffusion(steps: int, strength: float) -> Filter:
    """Return the filter of data.denoise."""
    import tensorflow as tf

    from trainer.data.denoise import remove_noise
    from trainer.spec.denoise import DenoiseSpec

    spec = DenoiseSpec(steps=steps, strength=strength)
    function = tf.function(
        lambda image: remove_noise(image, spec),
        input_signature=[tf.TensorSpec([None, None, 3], tf.uint8)],
        autograph=False,
    )
    return lambda image: np.asarray(function(tf.constant(image)))


def non_local_means(factor: float) -> Filter:
    """Return non-local means, with a cut-off of `factor` times the estimated noise."""
    try:
        library = importlib.import_module("skimage.restoration")
    except ImportError:
        raise SystemExit("scikit-image is not installed. Run: pip install scikit-image") from None

    def smooth(image: Pixels) -> Pixels:
        values = image.astype(np.float32) / 255.0
        sigma = float(np.mean(library.estimate_sigma(values, channel_axis=-1)))
        smoothed = library.denoise_nl_means(
            values, patch_size=5, patch_distance=4, h=max(factor * sigma, 1e-4), sigma=sigma, fast_mode=True,
            channel_axis=-1,
        )  # fmt: skip
        return np.asarray(np.clip(np.rint(smoothed * 255.0), 0, 255), np.uint8)

    return smooth


def choose_filters(source: Source, rows: NDArray[np.int64]) -> dict[str, Filter]:
    """Print the PSNR of all settings on some training images; return the best filter of each kind."""
    items = [source.train[row] for row in rows]
    noisy = {sigma: [read_noisy(source, item, sigma, 0) for item in items] for sigma in LEVELS}
    print(f"PSNR in dB on {len(items)} training images, sigma {', '.join(map(str, LEVELS[1:]))}, and clean")
    print_psnr("none", noisy, noisy[0], lambda image: image)
    candidates = {
        f"fab steps {steps}, strength {strength:g}": diffusion(steps, strength)
        for steps, strength in itertools.product(STEPS, STRENGTHS)
    }
    means = {f"nlm factor {factor:g}": non_local_means(factor) for factor in FACTORS}
    chosen = {}
    for kind, filters in (("fab", candidates), ("nlm", means)):
        scores = {name: print_psnr(name, noisy, noisy[0], apply) for name, apply in filters.items()}
        # Without a strength it would be forward diffusion alone, which is printed for comparison.
        best = max((name for name in scores if "strength 0," not in f"{name},"), key=scores.__getitem__)
        print(f"chosen: {best}", flush=True)
        chosen[kind] = filters[best]
    native = {
        sigma: [read_noisy(source, item, sigma, 0, chosen["fab"]) for item in items] for sigma in LEVELS
    }
    print_psnr("fab at the size of the file, before resizing", native, noisy[0], lambda image: image)
    return {"off": lambda image: image, **chosen}


def print_psnr(name: str, noisy: dict[int, list[Pixels]], clean: Sequence[Pixels], apply: Filter) -> float:
    """Print the mean PSNR at each level and the time per image; return the mean over the noisy levels."""
    started = time.perf_counter()
    values = {}
    for sigma, images in noisy.items():
        errors = [
            np.mean((apply(image).astype(float) - target) ** 2)
            for image, target in zip(images, clean, strict=True)
        ]
        values[sigma] = float(np.mean(10 * np.log10(255**2 / np.maximum(errors, 1e-2))))
    milliseconds = (time.perf_counter() - started) * 1000 / (len(noisy) * len(clean))
    texts = "  ".join(f"{values[sigma]:6.2f}" for sigma in (*LEVELS[1:], 0))
    print(f"  {name:<45} {texts}  {milliseconds:6.1f} ms per image", flush=True)
    return float(np.mean([values[sigma] for sigma in LEVELS[1:]]))


def measure_seed(
    source: Source,
    filters: dict[str, Filter],
    train: NDArray[np.int64],
    held_out: NDArray[np.int64],
    seed: int,
) -> dict[tuple[str, int, str], NDArray[np.bool_]]:
    """Return whether each tested image is classified correctly, by (training, sigma, filter)."""
    features: dict[tuple[str, int, str], NDArray[np.float32]] = {}
    for sigma in LEVELS:
        for name, items, rows in (
            ("train", source.train, train), ("held out", source.held_out, held_out),
        ):  # fmt: skip
            images = [read_noisy(source, items[row], sigma, seed) for row in rows]
            for kind, apply in filters.items():
                features[name, sigma, kind] = compute_features(source, [apply(image) for image in images])
    labels, truth = source.train_labels[train], source.held_out_labels[held_out]
    results = {}
    for kind in filters:
        heads = {sigma: fit_head(features["train", sigma, kind], labels) for sigma in LEVELS}
        for sigma in LEVELS:
            tested = features["held out", sigma, kind]
            results["trained clean", sigma, kind] = heads[0](tested) == truth
            if sigma:
                results["trained noisy", sigma, kind] = heads[sigma](tested) == truth
    return results


def compute_features(source: Source, images: Sequence[Pixels]) -> NDArray[np.float32]:
    """Return the features of the backbone, float32 [images, width]."""
    batches = [np.stack(images[start : start + _BATCH]) for start in range(0, len(images), _BATCH)]
    return np.concatenate(
        [np.asarray(source.backbone.predict_on_batch(batch.astype(np.float32))) for batch in batches]
    )


def fit_head(
    features: NDArray[np.float32], labels: NDArray[np.int32]
) -> Callable[[NDArray[np.float32]], NDArray[np.int64]]:
    """Return a function from features to classes, fitted as training does."""
    from trainer.training.probe import fit_probe

    probe = fit_probe(features, labels, np.ones(labels.max() + 1), folds=5)
    return lambda rows: np.argmax(rows @ probe.kernel + probe.bias, axis=1)


def print_tests(rights: dict[tuple[str, int, str], list[NDArray[np.bool_]]], kinds: Sequence[str]) -> None:
    """Print mean and spread of the accuracies over the seeds, and the tests against no filter."""
    from trainer.evaluate.significance import holm, paired_accuracies

    keys = [key for key in rights if key[2] != "off"]
    tests = []
    for training, sigma, kind in keys:
        first, second = (np.concatenate(rights[training, sigma, name]) for name in ("off", kind))
        only = int(np.sum(first & ~second)), int(np.sum(~first & second))
        tests.append((only, paired_accuracies(*only, len(first))))
    adjusted = holm([test.p_value for _, test in tests])
    print("accuracy: mean and standard deviation over the seeds")
    for training, sigma, kind in rights:
        values = [right.mean() for right in rights[training, sigma, kind]]
        line = (
            f"  {training}, sigma {sigma:>2}, {kind:<4} {np.mean(values):.4f} +- {np.std(values, ddof=1):.4f}"
        )
        if kind != "off":
            index = keys.index((training, sigma, kind))
            (lost, won), test = tests[index]
            line += (
                f"  {test.difference:+.4f} ({test.low:+.4f} to {test.high:+.4f}), {lost} lost, {won} won, "
                f"p {test.p_value:.2g}, adjusted {adjusted[index]:.2g}"
            )
        print(line)


if __name__ == "__main__":
    main()
