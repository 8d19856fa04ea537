"""Small datasets with one planted fault each, and a training run on them in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from helpers.small_training import Recorder
from trainer.data.load import load_dataset
from trainer.data.progress import SilentProgress
from trainer.data.sampler import steps_per_epoch
from trainer.distributed.devices import find_cluster
from trainer.evaluate.evaluator import Evaluator, predict_splits
from trainer.evaluate.metrics import compute_metrics
from trainer.report.inputs import ReportInputs, report_inputs
from trainer.spec import load_spec
from trainer.training import AsyncCheckpointer, build_learner, train

SIDE = 12
CLASSES = ("first", "second", "third", "fourth")

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Situation:
    """A dataset with one fault, and the settings of its training run."""

    name: str
    counts: Sequence[int] = (60, 60, 60, 60)
    """Training images per class; the held-out split has half as many."""
    noise: float = 45.0
    swapped: float = 0.0
    """Share of the images, in both splits, with the label of another class."""
    copied: float = 0.0
    """Share of the held-out images that are also training images."""
    is_mirrored: bool = False
    """Whether the copies are mirrored."""
    has_split: bool = True
    settings: Sequence[str] = field(default_factory=tuple)


def picture(label: int, noise: float, random: np.random.Generator) -> Pixels:
    """Return uint8 [SIDE, SIDE, 3]: noise with a bright bar, three rows high, from row 3 * label."""
    image = random.normal(100.0, noise, (SIDE, SIDE, 3))
    image[3 * label : 3 * label + 3, 3:9] += 90.0
    return np.clip(image, 0, 255).astype(np.uint8)


def write_data(root: Path, situation: Situation, seed: int) -> None:
    """Write the images of `situation` below `root`: class folders, in train/ and validation/ if split."""
    random = np.random.default_rng(seed)
    trained: list[tuple[int, Pixels]] = []
    for split, share in (("train", 1.0), ("validation", 0.5))[: 1 + situation.has_split]:
        for label, count in enumerate(situation.counts):
            for number in range(round(count * share)):
                image = picture(label, situation.noise, random)
                if split == "train":
                    trained.append((label, image))
                elif random.random() < situation.copied:
                    same = [each for of, each in trained if of == label]
                    image = same[number % len(same)]
                    image = image[:, ::-1] if situation.is_mirrored else image
                assigned = label
                if random.random() < situation.swapped:
                    assigned = int(
                        (label + random.integers(1, len(situation.counts))) % len(situation.counts)
                    )
                folder = root / (split if situation.has_split else "") / CLASSES[assigned]
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(folder / f"{split}-{label}-{number}.png")


def trained(root: Path, situation: Situation, cache: Path) -> tuple[ReportInputs, Recorder]:
    """Train on the images at `root`; return the inputs of the report and the recorder."""
    base = [
        f"data.source={root}", f"data.image_size={SIDE}",
        "train.precision=float32", "train.deterministic=true",
        "model={family: plain, filters: [8, 16], dense_units: [32]}",
        "train.epochs=20", "optimizer.learning_rate=0.003", "train.global_batch_size=16",
    ]  # fmt: skip
    spec = load_spec(settings=[*base, *situation.settings])
    dataset = load_dataset(spec.data, cache, SilentProgress(), lambda found: None)
    cluster, recorder = find_cluster(), Recorder()
    steps = steps_per_epoch(len(dataset.train.labels), spec.train.global_batch_size)
    learner = build_learner(spec, len(dataset.class_names), steps, cluster)
    evaluator = Evaluator(learner.inference_model)
    validate: Callable[[], dict[str, float]] = lambda: evaluator.loss_and_accuracy(dataset.held_out)  # noqa: E731
    with AsyncCheckpointer(cache / "checkpoints") as saver:
        result = train(learner, dataset, spec, cluster, saver, recorder, validate, lambda: False)
    predictions = predict_splits(evaluator, dataset)
    metrics = {
        f"{split}/{name}": value
        for split, each in predictions.items()
        for name, value in compute_metrics(each).items()
    }
    inputs = report_inputs(situation.name, spec, {}, dataset, result, predictions, metrics)
    return inputs, recorder
