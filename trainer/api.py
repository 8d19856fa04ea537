"""Python interface: train a model, load a finished run, and use it.

    import trainer

    run = trainer.train(data="photos", output="runs")
    run.metrics["validation/accuracy"]
    run.predict("photo.jpg")
    trainer.load("runs/latest").evaluate("other_photos.zip")

The functions do what the commands of the same names do. TensorFlow is imported when a model is used.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.cli.bootstrap import import_tensorflow, prepare_libraries
from trainer.cli.environment import cache_folder
from trainer.errors import UsageError
from trainer.runs.publish import find_run, is_finished
from trainer.storage.store import Store, read_object

if TYPE_CHECKING:
    from trainer.export.load import LoadedModel


@dataclass(frozen=True)
class Prediction:
    """Classification of one image."""

    path: str
    label: str
    """Class with the highest probability; empty if the image cannot be used."""
    probability: float
    """Of `label`, in 0..1."""
    probabilities: dict[str, float]
    """Of every class; with `data.labels` multi, they do not sum to 1."""
    labels: tuple[str, ...] = ()
    """With `data.labels` multi, all labels that reach their thresholds; otherwise `label` alone."""
    problem: str = ""
    """Why the image cannot be used; empty if it can."""
    known: float | None = None
    """p-value in 0..1 of the image among those that are like the training images; None if the image cannot be
    used, or if the model cannot reject images."""
    accepted: bool | None = None
    """Whether `known` reaches `export.reject_below`. An image that is not accepted is unlike the training
    images; it may still show one of the classes."""


class Run:
    """A finished run, on disk or in a bucket."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __repr__(self) -> str:
        return f"Run({self.uri!r})"

    @property
    def uri(self) -> str:
        """Path or URI of the run folder."""
        return self._store.uri

    @property
    def report(self) -> str:
        """Path or URI of the report."""
        return self._store.at("report.html")

    @cached_property
    def metrics(self) -> dict[str, float]:
        """Metrics of metrics.json, such as `validation/accuracy`."""
        return dict(read_object(self._store, "metrics.json"))

    def predict(self, *images: str | os.PathLike[str], trust: bool = False) -> list[Prediction]:
        """Classify image files, the images below folders, web URLs, and objects in a bucket.

        trust: load a model whose operations may read and write files. An image that cannot be used has a
        `problem`. Raises UsageError for a path that does not exist, DataError for a damaged model.
        """
        from trainer.cli.predict import local_images
        from trainer.data.progress import SilentProgress
        from trainer.evaluate.predict import classify_files, find_pictures

        model = self._model(trust)
        paths, _ = find_pictures(
            [local_images(str(path), cache_folder(), SilentProgress()) for path in images]
        )
        return [_prediction(path, answer, model) for path, answer in classify_files(model, paths)]

    def evaluate(
        self, data: str | os.PathLike[str], settings: Mapping[str, Any] | None = None, trust: bool = False
    ) -> dict[str, dict[str, float]]:
        """Return the metrics of the model on every split of `data`: {"validation": {"accuracy": 0.98, ...}}.

        settings: data settings such as {"data.layout": "folders"}. Raises DataError, UsageError.
        """
        from trainer.cli.predict import images_of
        from trainer.data.progress import SilentProgress
        from trainer.evaluate.predict import evaluate_source

        model, images = self._model(trust), images_of(self.uri)
        metrics, _ = evaluate_source(
            model, str(data), cache_folder(), SilentProgress(), _flags(settings), images
        )
        return metrics

    def _model(self, trust: bool) -> LoadedModel:
        prepare_libraries()
        import_tensorflow()
        from trainer.cli.paths import local_model
        from trainer.data.progress import SilentProgress
        from trainer.export import load_model

        return load_model(local_model(self.uri, cache_folder(), SilentProgress()), trust)


def train(
    data: str | os.PathLike[str] | None = None,
    output: str | os.PathLike[str] = "runs",
    *,
    recipe: str | None = None,
    run_name: str | None = None,
    settings: Mapping[str, Any] | None = None,
    fresh: bool = False,
) -> Run:
    """Train a model and return the finished run; a run of the same name and settings is resumed.

    data: folder, archive, URL or gs:// URI; without data and recipe, the demo is trained. settings: by
    dotted name, such as {"train.epochs": 20}. fresh: start an unfinished run again. Progress is printed.
    Raises the errors of `trainer.errors`; a `KeyboardInterrupt` leaves a run that can be resumed.
    """
    prepare_libraries()
    from trainer.cli.config import load_run_spec
    from trainer.cli.train import train_command
    from trainer.distributed import ProcessInfo
    from trainer.shutdown import GracefulShutdown

    source = None if data is None else str(data)
    overrides = {"data.source": source, "output": str(output), "run_name": run_name}
    spec = load_run_spec(None, recipe, _flags(settings), overrides, None, cache_folder())
    return load(train_command(spec, cache_folder(), fresh, GracefulShutdown(), ProcessInfo()))


def load(uri: str | os.PathLike[str]) -> Run:
    """Return the finished run at `uri`: a run folder, OUTPUT/latest or OUTPUT/champion.

    Raises UsageError if there is no finished run.
    """
    store = find_run(str(uri))
    if not is_finished(store):
        raise UsageError(
            "There is no finished run.", "Check the path, or finish the run with `trainer train`.", str(uri)
        )
    return Run(store)


def _flags(settings: Mapping[str, Any] | None) -> list[str]:
    """Return settings as for `--set`, with values in YAML."""
    import yaml

    flags = []
    for name, value in (settings or {}).items():
        text = yaml.safe_dump(_plain(value), default_flow_style=True, allow_unicode=True).strip()
        flags.append(f"{name}={text.removesuffix('...').strip()}")
    return flags


def _plain(value: Any) -> Any:
    """Return `value` with built-in types in the place of paths and NumPy scalars, which YAML lacks."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value.item() if hasattr(value, "item") else value


def _prediction(path: Path, answer: Any, model: LoadedModel) -> Prediction:
    from trainer.cli.predict import predicted_labels

    if isinstance(answer, str):
        return Prediction(str(path), "", 0.0, {}, problem=answer)
    probabilities = dict(zip(model.class_names, map(float, answer.probabilities), strict=True))
    label = max(probabilities, key=lambda name: probabilities[name])
    return Prediction(
        str(path), label, probabilities[label], probabilities,
        tuple(predicted_labels(probabilities, model)), known=answer.known, accepted=answer.accepted,
    )  # fmt: skip
