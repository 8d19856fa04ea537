"""Figures of the audit: planted faults and how many of them are found.

    python scripts/audit_figures.py labels --data cats_and_dogs_filtered.zip --plantings 5
    python scripts/audit_figures.py duplicates --data cats_and_dogs_filtered.zip --plantings 5
    python scripts/audit_figures.py shortcuts --data cats_and_dogs_filtered.zip --plantings 5
    python scripts/audit_figures.py noise --data cats_and_dogs_filtered.zip --plantings 5
    python scripts/audit_figures.py clean --data cats_and_dogs_filtered.zip --copies 100

All settings of the audit were chosen on the training images; the figures are of the images in `--split`,
validation by default. `clean` shuffles the labels, and no shortcut should be found. `labels` uses all splits.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trainer.audit.measures import Measures, measure_images
from trainer.audit.noise import find_noise_groups
from trainer.audit.shortcuts import Shortcuts, find_shortcuts
from trainer.data.fetch import fetch_source
from trainer.data.progress import SilentProgress

Random = np.random.Generator
MAX_PIXELS = 100_000_000
FOLLOWING = (1.0, 0.7)
"""Shares of the images of a class that have its planted property; the others have that of the other class."""
SAMPLES = (1_000, 200, 60)
"""Numbers of images of `clean`."""


@dataclass(frozen=True)
class Encoded:
    """An image in memory, as `trainer.data.items.Source`."""

    name: str
    data: bytes
    encoding: str = "image"

    def read(self) -> bytes:
        """Return the encoded bytes."""
        return self.data


def main() -> None:
    """Print the figures of one command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("figure", choices=FIGURES)
    parser.add_argument("--data", required=True, help="folder or archive with SPLIT/CLASS/ folders")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--plantings", type=int, default=5)
    parser.add_argument("--copies", type=int, default=100, help="shuffled copies, of clean")
    arguments = parser.parse_args()
    paths = find_images(arguments.data, arguments.split)
    print(f"{len(paths)} images of {arguments.split}", flush=True)
    FIGURES[arguments.figure](paths, arguments)


def find_images(data: str, split: str) -> list[Path]:
    """Return the images of a split."""
    from trainer.cli.environment import cache_folder

    root = fetch_source(data, None, cache_folder(), 1 << 40, SilentProgress())
    folders = [folder for folder in sorted(root.resolve().rglob(split)) if folder.is_dir()]
    if not folders:
        raise SystemExit(f"{data} contains no folder {split}/.")
    return sorted(path for path in folders[0].rglob("*") if path.is_file())


def read_labels(paths: Sequence[Path]) -> tuple[NDArray[np.int64], list[str]]:
    """Return the class of each image by its folder, and the names of the classes."""
    names, labels = np.unique([path.parent.name for path in paths], return_inverse=True)
    return labels.astype(np.int64), [str(name) for name in names]


Plant = Callable[[Image.Image, int, dict[str, Any]], bytes]


def encode(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    """Return the encoded image."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def plant_quality(image: Image.Image, group: int, settings: dict[str, Any]) -> bytes:
    """Encode each group with another JPEG quality."""
    return encode(image, quality=settings["quality"][group])


def plant_size(image: Image.Image, group: int, settings: dict[str, Any]) -> bytes:
    """Shrink one group."""
    scale = settings["scale"] if group else 1.0
    size = (max(16, round(image.width * scale)), max(16, round(image.height * scale)))
    return encode(image.resize(size, Image.Resampling.LANCZOS), quality=75)


def plant_border(image: Image.Image, group: int, settings: dict[str, Any]) -> bytes:
    """Paint a border of one colour around one group."""
    if group:
        framed = Image.new("RGB", image.size, settings["colour"])
        margin = settings["margin"]
        inner = (max(1, image.width - 2 * margin), max(1, image.height - 2 * margin))
        framed.paste(image.resize(inner), (margin, margin))
        image = framed
    return encode(image, quality=75)


def draw_settings(random: Random) -> dict[str, Any]:
    """Return the settings of one planting."""
    low = int(random.integers(50, 80))
    return {
        "quality": (low, low + int(random.integers(5, 20))),
        "scale": float(random.uniform(0.5, 0.8)),
        "margin": int(random.integers(2, 12)),
        "colour": tuple(int(value) for value in random.integers(0, 256, 3)),
    }


SHORTCUTS: dict[str, tuple[Plant, tuple[str, ...]]] = {
    # name: (planting, fields of which one must be named)
    "JPEG quality": (plant_quality, ("JPEG quality", "quantization tables")),
    "size": (plant_size, ("width", "height", "number of pixels")),
    "border": (plant_border, ("frame",)),
}


def print_shortcuts(paths: Sequence[Path], arguments: argparse.Namespace) -> None:
    """Plant each shortcut; print how often it is claimed, and with which field first."""
    labels, names = read_labels(paths)
    for following in FOLLOWING:
        for name, (plant, expected) in SHORTCUTS.items():
            accuracies, firsts, count = [], [], 0
            for seed in range(arguments.plantings):
                measures = measure_planted(paths, labels, plant, following, seed)
                result = find_shortcuts(measures, labels, names)
                first = result.claimed[0] if result and result.claimed else None
                firsts.append(first.name if first else "none")
                accuracies.append(first.accuracy if first else 0.0)
                count += bool(result and {field.name for field in result.claimed} & set(expected))
            print(
                f"{name:<14} {following:.0%} of the images: found and named {count} of "
                f"{arguments.plantings}; "
                f"accuracy {describe(accuracies)}; strongest: {', '.join(firsts)}",
                flush=True,
            )


def measure_planted(
    paths: Sequence[Path], labels: NDArray[np.int64], plant: Plant, following: float, seed: int
) -> Measures:
    """Return the measures of all images after the planting."""
    random = np.random.default_rng(seed)
    settings = draw_settings(random)
    groups = np.where(random.random(len(paths)) < following, labels % 2, 1 - labels % 2)
    if random.random() < 0.5:
        groups = 1 - groups

    def make(number: int) -> Encoded:
        with Image.open(paths[number]) as image:
            return Encoded(paths[number].name, plant(image.convert("RGB"), int(groups[number]), settings))

    return measure_images(on_all_cores(make, len(paths)), MAX_PIXELS, SilentProgress())


def on_all_cores(make: Callable[[int], Encoded], count: int) -> list[Encoded]:
    """Return the result of `make` for 0..count-1."""
    with ThreadPoolExecutor() as executor:
        return list(executor.map(make, range(count)))


def describe(values: Sequence[float]) -> str:
    """Return mean, standard deviation and minimum."""
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):.3f}, standard deviation {spread:.3f}, minimum {min(values):.3f}"


def measure_files(paths: Sequence[Path]) -> Measures:
    """Return the measures of the images as they are."""
    items = [Encoded(path.name, path.read_bytes()) for path in paths]
    return measure_images(items, MAX_PIXELS, SilentProgress())


def print_clean(paths: Sequence[Path], arguments: argparse.Namespace) -> None:
    """Print what is found with the true labels, and how often anything is found with shuffled ones."""
    labels, names = read_labels(paths)
    measures = measure_files(paths)
    result = find_shortcuts(measures, labels, names)
    if result:
        print_fields(result)
    for images in SAMPLES:
        claims, significant, seconds = 0, 0, []
        for seed in range(arguments.copies):
            random = np.random.default_rng(seed)
            rows = random.permutation(len(paths))[:images]
            started = time.perf_counter()
            result = find_shortcuts(measures.take(rows), random.permutation(labels[rows]), names)
            seconds.append(time.perf_counter() - started)
            if result:
                fields = (result.technical, result.content, *result.fields)
                claims += any(field.is_claimed for field in fields)
                significant += any(field.p_value < 0.05 for field in fields)
        print(
            f"{images} images, labels shuffled {arguments.copies} times: {claims} claims, "
            f"{significant} with p below 0.05; {statistics.fmean(seconds):.2f} s each",
            flush=True,
        )


def print_fields(result: Shortcuts) -> None:
    """Print the accuracy of each field."""
    print(f"chance {result.chance:.3f}")
    for field in (result.technical, result.content, *result.fields):
        claim = "claimed" if field.is_claimed else ""
        print(f"{field.name:<34} {field.accuracy:.3f}  p {field.p_value:.2g} {claim}")


def add_gaussian(pixels: NDArray[np.uint8], random: Random) -> NDArray[np.uint8]:
    """Add Gaussian noise of sigma 8 to 20, of 255, drawn for each image."""
    noise = random.normal(0, random.uniform(8, 20), pixels.shape)
    return np.clip(np.round(pixels + noise), 0, 255).astype(np.uint8)


def add_salt_and_pepper(pixels: NDArray[np.uint8], random: Random) -> NDArray[np.uint8]:
    """Make 2% to 8% of the pixels black or white, drawn for each image."""
    drawn, share = random.random(pixels.shape[:2]), random.uniform(0.02, 0.08)
    noisy = pixels.copy()
    noisy[drawn < share / 2], noisy[drawn > 1 - share / 2] = 0, 255
    return noisy


def compress(pixels: NDArray[np.uint8], random: Random) -> NDArray[np.uint8]:
    """Encode as JPEG at quality 20, and decode."""
    return np.asarray(Image.open(io.BytesIO(encode(Image.fromarray(pixels), quality=20))))


def leave(pixels: NDArray[np.uint8], random: Random) -> NDArray[np.uint8]:
    """Change nothing."""
    return pixels


AddNoise = Callable[[NDArray[np.uint8], Random], NDArray[np.uint8]]
STORED: dict[str, dict[str, Any]] = {"PNG": {"compress_level": 1}, "JPEG": {"quality": 95}}
"""Formats that noisy images are stored in, the same for all kinds, with options of the encoder."""
NOISE: tuple[AddNoise, ...] = (add_gaussian, add_salt_and_pepper, compress)


def measure_noisy(paths: Sequence[Path], kinds: Sequence[AddNoise], stored: str, seed: int) -> Measures:
    """Return the measures of all images after adding to each its kind of noise."""

    def make(number: int) -> Encoded:
        with Image.open(paths[number]) as image:
            pixels = np.asarray(image.convert("RGB"))
        noisy = kinds[number](pixels, np.random.default_rng((seed, number)))
        return Encoded(paths[number].name, encode(Image.fromarray(noisy), stored, **STORED[stored]))

    return measure_images(on_all_cores(make, len(paths)), MAX_PIXELS, SilentProgress())


def print_noise(paths: Sequence[Path], arguments: argparse.Namespace) -> None:
    """Plant the kinds of noise; print the adjusted Rand index of the groups."""
    from sklearn.metrics import adjusted_rand_score

    for name, kinds in (("three kinds", NOISE), ("three kinds and untouched", (*NOISE, leave))):
        for stored in STORED:
            indices, counts = [], []
            for seed in range(arguments.plantings):
                drawn = np.random.default_rng(seed).integers(0, len(kinds), len(paths))
                measures = measure_noisy(paths, [kinds[kind] for kind in drawn], stored, seed)
                groups = find_noise_groups(measures.noise)
                is_known = groups.groups >= 0
                indices.append(float(adjusted_rand_score(drawn[is_known], groups.groups[is_known])))
                counts.append(len(groups.texts))
            print(f"{name}, stored as {stored}: adjusted Rand index {describe(indices)}; groups {counts}")
    clean = find_noise_groups(measure_files(paths).noise)
    print(f"as they are: {len(clean.texts)} group, {clean.components} components")


WRONG_SHARES = (0.02, 0.05, 0.1)


def print_labels(paths: Sequence[Path], arguments: argparse.Namespace) -> None:
    """Give a share of all images another label; print how many of as many suspects are these images."""
    from trainer.audit.audit import join_splits
    from trainer.audit.backbone import PIXELS, compute_features
    from trainer.audit.label_errors import find_label_errors
    from trainer.cli.environment import cache_folder
    from trainer.data.load import load_splits
    from trainer.distributed import ProcessGroup, ProcessInfo
    from trainer.distributed.devices import find_cluster
    from trainer.spec.schema import DataSpec

    cluster = find_cluster(False, "auto", ProcessGroup(ProcessInfo()))
    data = DataSpec.model_validate({"source": arguments.data, **PIXELS})
    splits, names, _ = load_splits(data, cache_folder(), SilentProgress())
    features = compute_features(splits, data, cluster, cache_folder(), SilentProgress())
    images = join_splits(splits, names, features)
    labels, values = np.asarray(images.labels), np.asarray(images.features)
    for suspect in (find_label_errors(values, labels, images.is_train) or [])[:20]:
        name, likely = images.items[suspect.row].name, names[suspect.suggested]
        print(f"as they are: {name} {suspect.label_probability:.3f}, {likely}, {suspect.is_probable}")
    for share in WRONG_SHARES:
        hits, probable, precisions = [], [], []
        for seed in range(arguments.plantings):
            random, count = np.random.default_rng(seed), round(share * len(labels))
            wrong = random.choice(len(labels), count, replace=False)
            changed = labels.copy()
            changed[wrong] = (labels[wrong] + random.integers(1, len(names), count)) % len(names)
            suspects = find_label_errors(values, changed, images.is_train) or []
            sure = [suspect.row for suspect in suspects if suspect.is_probable]
            hits.append(float(np.isin([suspect.row for suspect in suspects[:count]], wrong).sum() / count))
            probable.append(float(np.isin(wrong, sure).mean()))
            precisions.append(float(np.isin(sure, wrong).mean()))
        print(
            f"{share:.0%} of {len(labels)} labels wrong: of as many suspects {describe(hits)} are wrong; "
            f"probable errors: recall {describe(probable)}, precision {describe(precisions)}",
            flush=True,
        )


COPIES = 200
COPY_KINDS = ("resized", "re-encoded", "mirrored", "cropped")


def write_copy(path: Path, target: Path, kind: str, random: Random) -> None:
    """Write a copy of the image at `path`.

    It is scaled by 0.4 to 1.6, encoded at quality 20 to 60, mirrored, or cropped by 5% of both sides at a
    random place.
    """
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    (width, height), quality = image.size, 90
    if kind == "resized":
        scale = random.uniform(0.4, 1.6)
        image = image.resize((max(8, int(width * scale)), max(8, int(height * scale))))
    elif kind == "re-encoded":
        quality = int(random.integers(20, 61))
    elif kind == "mirrored":
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    else:
        left, top = (int(random.integers(0, round(side * 0.05) + 1)) for side in image.size)
        image = image.crop((left, top, left + round(width * 0.95), top + round(height * 0.95)))
    target.parent.mkdir(parents=True, exist_ok=True)
    image.save(target, quality=quality)


def print_duplicates(paths: Sequence[Path], arguments: argparse.Namespace) -> None:
    """Plant 200 copies of images; print how many are found as pairs with their original, and other groups."""
    recalls, others, seconds = [], [], []
    for seed in range(arguments.plantings):
        random = np.random.default_rng(seed)
        chosen = random.choice(len(paths), min(COPIES, len(paths)), replace=False)
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            for path in paths:
                (root / path.parent.name).mkdir(exist_ok=True)
                (root / path.parent.name / path.name).symlink_to(path)
            for number, row in enumerate(chosen):
                kind, path = COPY_KINDS[number % len(COPY_KINDS)], paths[row]
                write_copy(path, root / path.parent.name / f"copy-{path.stem}.jpg", kind, random)
            pairs, found, taken = find_copies(root)
        seconds.append(taken)
        recalls.append(len(pairs & found) / len(pairs))
        others.append(len(found - pairs))
    print(
        f"{len(chosen)} copies among {len(paths)} images: recall {describe(recalls)}; other groups {others}; "
        f"{statistics.fmean(seconds):.1f} s"
    )


def find_copies(root: Path) -> tuple[set[frozenset[str]], set[frozenset[str]], float]:
    """Return the planted pairs, the groups that are found, by names, and the seconds of the search."""
    from trainer.audit.backbone import PIXELS
    from trainer.data.load import load_splits
    from trainer.data.near_duplicates import build_thumbnails, find_near_duplicates
    from trainer.spec.schema import DataSpec

    data = DataSpec.model_validate({"source": str(root), **PIXELS})
    (split,) = load_splits(data, root / "cache", SilentProgress())[0].values()
    started = time.perf_counter()
    groups = find_near_duplicates(build_thumbnails(split.pixels, len(split.items)))
    taken = time.perf_counter() - started
    names = [item.name for item in split.items]
    pairs = {frozenset((name, name.replace("/copy-", "/"))) for name in names if "/copy-" in name}
    return pairs, {frozenset(names[row] for row in group.rows) for group in groups}, taken


FIGURES: dict[str, Callable[[Sequence[Path], argparse.Namespace], None]] = {
    "shortcuts": print_shortcuts,
    "clean": print_clean,
    "duplicates": print_duplicates,
    "labels": print_labels,
    "noise": print_noise,
}

if __name__ == "__main__":
    main()
