"""Accuracy of a head on frozen features with few training images per class.

    python scripts/few_images.py --data cats_and_dogs_filtered.zip --images 10 25 100 --draws 20

The features are those of the recipe auto. Each draw samples that many training images of each class, fits the
head as training does, and classifies all held-out images. Prints mean, standard deviation and the worst draw.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def main() -> None:
    """Compute the features once, then print a line for each number of images."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True)
    parser.add_argument("--images", type=int, nargs="+", default=[10, 25, 100])
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--set", action="append", default=[], help="setting, as for trainer train")
    arguments = parser.parse_args()
    train, held_out = compute_features(arguments.data, arguments.set)
    print(f"{platform.machine()}, {os.cpu_count()} cores, {date.today()}: {len(held_out[1])} held-out images")
    for count in arguments.images:
        accuracies = [measure_draw(train, held_out, count, seed) for seed in range(arguments.draws)]
        mean, spread = statistics.fmean(accuracies), statistics.pstdev(accuracies)
        print(
            f"{count:>5} per class: accuracy {mean:.4f}, standard deviation {spread:.4f}, "
            f"worst {min(accuracies):.4f}, {arguments.draws} draws",
            flush=True,
        )


def compute_features(data: str, settings: list[str]) -> tuple[Any, Any]:
    """Return (features, labels) of the training images and of the held-out images."""
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
    from trainer.training.features import build_features

    with Console(30.0, stderr=True) as console:
        spec = load_spec(recipe="auto", overrides={"data.source": data}, settings=settings)
        spec, cluster = choose_settings(spec, cache_folder(), console), find_cluster()
        dataset = load_dataset(spec.data, cache_folder(), console, lambda rejected: None)
        model = build_learner(spec, len(dataset.class_names), 1, cluster).fill_inference_model()
        if not isinstance(spec.model, PretrainedSpec):
            raise SystemExit("No pretrained weights are available on this machine.")
        if (file := find_weights(spec.model, cache_folder(), console)) is not None:
            load_weights(get_backbone(model), file)
        features = build_features(spec, model, dataset, cluster, cache_folder(), console)
        if features is None:
            raise SystemExit("The recipe auto does not use frozen features for this data.")
        train, held_out = dataset.train, dataset.held_out
        return (features.of(train), train.labels), (features.of(held_out), held_out.labels)


def measure_draw(train: Any, held_out: Any, count: int, seed: int) -> float:
    """Return the held-out accuracy with `count` training images of each class."""
    from trainer.training.probe import fit_probe

    random, labels = np.random.default_rng(seed), train[1]
    rows = np.concatenate(
        [random.choice(np.flatnonzero(labels == label), count, replace=False) for label in np.unique(labels)]
    )
    probe = fit_probe(train[0][rows], labels[rows], np.ones(labels.max() + 1), folds=5)
    predicted = np.argmax(held_out[0] @ probe.kernel + probe.bias, axis=1)
    return float(np.mean(predicted == held_out[1]))


if __name__ == "__main__":
    main()
