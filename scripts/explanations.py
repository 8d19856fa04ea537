"""Quality of occlusion maps: deletion and insertion against random maps.

    python scripts/explanations.py runs/pets --data cats_and_dogs_filtered.zip --images 40

Explains images of the validation or test split, drawn by the seed, and measures each map and random maps
of the same smoothness, by the areas of Petsiuk et al. (2018). Prints means, the mean difference with its 95%
interval (Student), and the time per map.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from datetime import date
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def main() -> None:
    """Measure the maps and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--split", default="", help="split to explain; default: validation, or else test")
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--random", type=int, default=5, help="random maps per image")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    areas, seconds = measure(arguments)
    from trainer.evaluate.significance import mean_interval

    print(f"{platform.machine()}, {os.cpu_count()} cores, {date.today()}: {len(areas)} images")
    for index, name in enumerate(("deletion", "insertion")):
        mean, _, half = mean_interval((areas[:, 0, index] - areas[:, 1, index]).tolist())
        better = np.mean(areas[:, 0, index] > areas[:, 1, index])
        better = better if name == "insertion" else 1.0 - better
        print(
            f"{name:<10} occlusion {areas[:, 0, index].mean():.4f}, random {areas[:, 1, index].mean():.4f}, "
            f"difference {mean:+.4f} +- {half:.4f}, better for {better:.0%} of the images"
        )
    print(f"{seconds:.2f} s per map")


def measure(arguments: argparse.Namespace) -> tuple[np.ndarray[tuple[int, ...], np.dtype[np.float64]], float]:
    """Return areas, float64 [images, map or random, deletion or insertion], and the seconds per map."""
    from trainer.cli.bootstrap import import_tensorflow, prepare_libraries
    from trainer.cli.console import Console
    from trainer.cli.environment import cache_folder

    prepare_libraries()
    import_tensorflow()
    from trainer.data.load import load_labelled
    from trainer.evaluate.explain import explain, measure_map, random_map
    from trainer.export import load_model
    from trainer.spec import load_spec

    model = load_model(arguments.run)
    fixed = {"source": arguments.data, **model.data.model_dump(exclude_unset=True)}
    spec = load_spec(overrides={f"data.{name}": value for name, value in fixed.items()}).data
    with Console(30.0, stderr=True) as console:
        splits, _ = load_labelled(spec, model.class_names, cache_folder(), console)
    split = splits[arguments.split or next(name for name in ("validation", "test") if name in splits)]
    random = np.random.default_rng(arguments.seed)
    rows = random.permutation(len(split.items))[: arguments.images]
    is_multi, classify = model.data.labels == "multi", model.classify_pixels
    areas, seconds = [], 0.0
    for image in split.pixels.gather(rows):
        began = time.perf_counter()
        explanation = explain(classify, image, model.class_names, is_multi)
        seconds += time.perf_counter() - began
        label = model.class_names.index(explanation.label)
        shape = explanation.heat.shape
        others = [
            random_map(shape[0], shape[1], int(random.integers(2**31))) for _ in range(arguments.random)
        ]
        measured = [
            measure_map(classify, image, label, heat, is_multi) for heat in (explanation.heat, *others)
        ]
        areas.append([measured[0], tuple(np.mean(measured[1:], axis=0))])
    return np.asarray(areas, np.float64), seconds / len(areas)


if __name__ == "__main__":
    main()
