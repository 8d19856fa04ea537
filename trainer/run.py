"""Training pipeline of one run: data, model, training, evaluation, export, publication.

`run` calls three phases, from a spec to a finished run folder: `prepare`, `train_model` and `finish`. Each
returns the inputs of the next one.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import keras

from trainer.data.dataset import Dataset, format_contents
from trainer.data.items import Rejection, all_normalized, normalized
from trainer.data.load import load_dataset
from trainer.data.progress import Progress
from trainer.data.sampler import steps_per_epoch
from trainer.data.statistics import describe_images
from trainer.distributed import ProcessGroup
from trainer.distributed.devices import Cluster, choose_precision, find_cluster
from trainer.errors import DataError, UnchangedError, UsageError
from trainer.evaluate.confidence import Calibrated, calibrate
from trainer.evaluate.evaluator import Evaluator, predict_splits, thresholds_of
from trainer.evaluate.explain import build_explainer
from trainer.evaluate.metrics import AnyPredictions, compute_metrics
from trainer.evaluate.prediction_files import write_predictions
from trainer.export import export_model, make_golden, verify_export
from trainer.report.drift import Drift, find_drift
from trainer.report.inputs import report_inputs
from trainer.report.label_page import write_label_report
from trainer.report.names import clip
from trainer.report.page import write_report
from trainer.report.verdict import Verdict
from trainer.runs import (
    IMAGES,
    RunFolder,
    current_command,
    find_earlier,
    find_same_run,
    read_images,
    read_precision,
    require_complete,
    write_environment,
    write_rejected,
)
from trainer.runs.publish import publish
from trainer.runs.warm_start import begin, new_weights_sha256
from trainer.shutdown import GracefulShutdown
from trainer.spec import RunSpec, format_size
from trainer.storage.local import replace_folder, write_json
from trainer.training import AsyncCheckpointer, Learner, Observer, TrainResult, build_learner, train
from trainer.training.features import Features, build_features
from trainer.training.learner import whiten_first_layer
from trainer.training.objective import get_objective
from trainer.training.scaling import (
    ResolvedSpec,
    describe_scaling,
    require_equal_shares,
    require_whole_batch,
    resolve_spec,
)

# 80 columns, less the 11 of the label before a fact.
_FACT_WIDTH = 69
# Share of the grace period for the last checkpoint; the rest is for process exit.
_GRACE_SHARE = 0.8


class Screen(Observer, Progress, Protocol):
    """Reporting interface of a run: facts, data progress, training progress."""

    def on_fact(self, name: str, text: str) -> None:
        """Report one fact, such as the devices or the data."""

    def on_phase(self, name: str) -> None:
        """Report that a phase after the training begins, such as "Evaluating"."""


@dataclass(frozen=True)
class PreparedRun:
    """Inputs of the training: devices, data, resolved spec and model with its initial weights."""

    cluster: Cluster
    dataset: Dataset
    resolved: ResolvedSpec
    learner: Learner
    features: Features | None
    """Cached features of a frozen backbone; None if there are none."""
    evaluator: Evaluator
    environment: dict[str, Any]
    """Contents of environment.json."""


@dataclass(frozen=True)
class Trained:
    """Results of the training; the weights are those of the learner's inference model."""

    result: TrainResult
    predictions: dict[str, AnyPredictions]
    """Predictions for every evaluated split, by its name."""


def run(
    spec: RunSpec,
    folder: RunFolder,
    cache_dir: Path,
    screen: Screen,
    shutdown: GracefulShutdown,
    group: ProcessGroup,
) -> Verdict | None:
    """Train and publish the run of `spec` in `folder` with `group`, resuming from its newest checkpoint.

    Returns None if another process is the chief. See `trainer.errors` for the errors it raises.
    """
    cluster = find_cluster(spec.train.deterministic, spec.train.devices, group)
    # With several processes TensorFlow's SigtermNotifier has replaced the SIGTERM handler.
    shutdown.reinstall()
    screen.on_fact("devices", cluster.description)
    prepared = prepare(spec, cluster, folder, cache_dir, screen)
    trained = train_model(prepared, folder, screen, shutdown)
    verdict = finish(prepared, trained, folder, screen) if cluster.is_chief else None
    group.barrier("published")
    return verdict


def prepare(
    spec: RunSpec, cluster: Cluster, folder: RunFolder, cache_dir: Path, screen: Screen
) -> PreparedRun:
    """Load the data, build the model with its initial weights, and write the files that describe the run."""
    dataset = load_dataset(
        spec.data, cache_dir, screen, lambda rejected: _write_rejected_early(folder, rejected), cluster.group
    )
    folder.require_lease()  # the lease may expire during loading; files are written from here on
    screen.on_fact("data", format_contents(dataset, _FACT_WIDTH))
    _require_new(spec, dataset, folder, cluster.group, cache_dir, screen)
    resolved = _resolve(spec, cluster, len(dataset.train.labels), folder, screen)
    effective = resolved.effective
    steps = steps_per_epoch(len(dataset.train.labels), effective.train.global_batch_size)
    learner = build_learner(effective, len(dataset.class_names), steps, cluster)
    whiten_first_layer(learner, dataset.train, cluster)
    start = begin(effective, learner, dataset, cluster, folder, cache_dir, screen)
    _write_dataset(dataset, cluster, folder, screen)
    environment = write_environment(folder.path, spec, cluster.description, start, current_command())
    # A restart can use a checkpoint only with the files that describe the run.
    folder.keep()
    screen.on_fact("model", _describe(spec, learner))
    model = learner.inference_model
    features = build_features(effective, model, dataset, cluster, cache_dir, screen)
    reused = None if spec.model.average_mirror else features
    evaluator = Evaluator(model, cluster, reused, get_objective(spec.data.labels))
    return PreparedRun(cluster, dataset, resolved, learner, features, evaluator, environment)


def train_model(
    prepared: PreparedRun, folder: RunFolder, screen: Screen, shutdown: GracefulShutdown
) -> Trained:
    """Train the prepared model to its last epoch, saving checkpoints, and predict the evaluated splits."""
    spec, dataset, evaluator = prepared.resolved.effective, prepared.dataset, prepared.evaluator

    def is_stopped() -> bool:
        folder.check_lease()
        return shutdown.is_requested()

    def is_overdue() -> bool:
        return shutdown.is_overdue(_GRACE_SHARE * spec.train.grace_seconds)

    with (
        shutdown.defer(),
        AsyncCheckpointer(folder.checkpoints, folder.keep, is_overdue, folder.require_lease) as checkpointer,
    ):
        if prepared.cluster.is_chief:  # only the chief writes checkpoints
            shutdown.outcome = checkpointer.resume_advice
        result = train(
            prepared.learner, dataset, spec, prepared.cluster, checkpointer, screen,
            lambda: evaluator.loss_and_accuracy(dataset.held_out, is_stopped), is_stopped, prepared.features,
        )  # fmt: skip
    screen.on_phase("Evaluating")
    return Trained(result, predict_splits(evaluator.final(spec.is_frozen), dataset))


def finish(prepared: PreparedRun, trained: Trained, folder: RunFolder, screen: Screen) -> Verdict:
    """Write the metrics, the SavedModel and the report, then publish the run; only the chief does."""
    spec, dataset = prepared.resolved.spec, prepared.dataset
    model = prepared.learner.inference_model
    screen.on_phase("Calibrating the model")
    calibrated = calibrate(
        prepared.resolved.effective, model, dataset, trained.predictions, trained.result.history,
        prepared.features, screen.on_message,
    )  # fmt: skip
    metrics = _write_metrics(calibrated, trained.result, folder)
    screen.on_phase("Exporting the model")
    screen.on_fact("export", _export(model, dataset, spec, folder, calibrated))
    screen.on_phase("Writing the report")
    drift = _drift(spec, dataset, folder, screen)
    inputs = report_inputs(
        folder.name, spec, prepared.environment, dataset, trained.result, calibrated.predictions, metrics,
        drift, build_explainer(
            model, get_objective(spec.data.labels), dataset.class_names, spec.data.labels == "multi"
        ),
    )  # fmt: skip
    write = write_label_report if spec.data.labels == "multi" else write_report
    verdict = write(folder.path, inputs)
    require_complete(folder.path)
    screen.on_phase("Publishing")
    _publish(folder, screen)
    return verdict


def _require_new(
    spec: RunSpec, dataset: Dataset, folder: RunFolder, group: ProcessGroup, cache_dir: Path, screen: Screen
) -> None:
    """Check the class names, and skip a run whose data and spec have not changed.

    Raises UsageError for unknown classes in train.class_weights, DataError for a class name with a line
    break. Raises UnchangedError on all processes if the chief finds a finished run with equal data and spec.
    """
    _require_classes(spec, dataset)
    if not spec.publish.skip_unchanged:
        return
    is_new = group.process.is_chief and not folder.newest_checkpoint
    unchanged_run = ""
    if is_new:
        weights_sha256 = new_weights_sha256(spec, folder, cache_dir, screen)
        unchanged_run = find_same_run(folder.output, spec, dataset.digest, weights_sha256)
    name = group.broadcast(unchanged_run.encode()).decode()
    if name:
        raise UnchangedError(
            f"Nothing to do: neither the data nor the spec has changed since the run {name}.", name
        )


def _resolve(spec: RunSpec, cluster: Cluster, images: int, folder: RunFolder, screen: Screen) -> ResolvedSpec:
    """Return the spec with batch size and learning rate for these devices, and a definite precision."""
    replicas = cluster.strategy.num_replicas_in_sync
    require_whole_batch(spec, replicas, images)
    if (text := describe_scaling(spec, replicas)) is not None:
        screen.on_fact("batch", text)
    resolved = resolve_spec(spec, replicas, _precision(spec, cluster, folder))
    if cluster.device_kind == "TPU":
        require_equal_shares(resolved.effective, replicas, images)
    return resolved


def _precision(spec: RunSpec, cluster: Cluster, folder: RunFolder) -> str:
    """Return train.precision, with "auto" resolved by the chief; a resumed run keeps its precision."""
    if spec.train.precision != "auto":
        return spec.train.precision
    saved = read_precision(folder.path) if folder.newest_checkpoint else None
    precision = saved or choose_precision("auto", cluster, spec.has_depthwise)
    return cluster.group.broadcast(precision.encode()).decode()


def _publish(folder: RunFolder, screen: Screen) -> None:
    """Upload the last files to the output, then publish the run."""
    pending_bytes = folder.mirror.waiting_bytes()
    if pending_bytes:
        task = screen.start(f"Uploading to {folder.at('')}", pending_bytes, "B")
        try:
            folder.keep(task.advance)
        finally:
            task.finish()
    folder.keep(is_whole=True)
    latest = publish(folder.output, folder.name, folder.path, folder.require_lease)
    if latest != folder.name:
        screen.on_fact("latest", f"still {latest}, which was published after this run")


def _write_rejected_early(folder: RunFolder, rejected: tuple[Rejection, ...]) -> None:
    """Write the rejected images before loading can fail; a run with a checkpoint keeps its file."""
    if not folder.newest_checkpoint:
        write_rejected(folder.path, rejected)


def _write_dataset(dataset: Dataset, cluster: Cluster, folder: RunFolder, screen: Screen) -> None:
    write_json(folder.path / "dataset.json", dataset.summary)
    if cluster.is_chief and not (folder.newest_checkpoint and (folder.path / IMAGES).exists()):
        write_json(folder.path / IMAGES, describe_images(dataset))
    write_rejected(folder.path, dataset.rejected)
    for warning in dataset.warnings:
        screen.on_message(warning)


def _require_classes(spec: RunSpec, dataset: Dataset) -> None:
    for name in dataset.class_names:
        # labels.txt has one line per class.
        if len(name.splitlines()) != 1:
            raise DataError(
                "The name of a class contains a line break.", "Rename the class.", received=f"{name!r}"
            )
    weights = spec.train.class_weights
    known = all_normalized(dataset.class_names)
    unknown = [name for name in weights if normalized(name) not in known] if isinstance(weights, dict) else []
    if unknown:
        raise UsageError(
            "train.class_weights contains a class that the data do not have.",
            f"The classes are {', '.join(dataset.class_names)}.",
            received=", ".join(unknown),
        )


def _describe(spec: RunSpec, learner: Learner) -> str:
    weights = learner.model.count_params()
    epochs = f"{spec.train.epochs} {'epoch' if spec.train.epochs == 1 else 'epochs'}"
    return (
        f"{spec.model.family}, {weights:,} weights, {format_size(spec.data.image_size)}, "
        f"{learner.precision}; {epochs} of {learner.steps_per_epoch} steps"
    )


def _write_metrics(calibrated: Calibrated, result: TrainResult, folder: RunFolder) -> dict[str, float]:
    """Write predictions.csv, metrics.json and timings.json; return the metrics, keyed split/metric."""
    predictions = calibrated.predictions
    write_predictions(folder.path / "predictions.csv", list(predictions.values()))
    metrics = {
        f"{split}/{name}": value
        for split, split_predictions in predictions.items()
        for name, value in compute_metrics(split_predictions).items()
    } | calibrated.metrics
    write_json(folder.path / "metrics.json", metrics | {"training/best_epoch": result.best_epoch})
    times = {"training_seconds": result.seconds, "epochs": result.timings}
    write_json(folder.path / "timings.json", times)
    return metrics


def _export(
    model: keras.Model, dataset: Dataset, spec: RunSpec, folder: RunFolder, calibrated: Calibrated
) -> str:
    """Export the model, verify it in a fresh process, and only then move it to its final path."""
    # A unique name: a process that was paused here may continue while another one exports.
    temporary = folder.path / f".model.{secrets.token_hex(6)}.tmp"
    folder.require_lease()
    thresholds, confidence = thresholds_of(calibrated.predictions), calibrated.confidence
    export_model(temporary, model, dataset.class_names, spec.data, thresholds, confidence)
    objective, form = get_objective(spec.data.labels), spec.data.pixel_format
    golden = make_golden(model, dataset.held_out, objective, confidence, form)
    difference = verify_export(temporary, golden)
    replace_folder(temporary, folder.model)
    precision = f"to {difference:.0e}" if difference else "exactly"
    lost = f" ({golden.lost} from the cache: the source has changed since)" if golden.lost else ""
    return f"saved and verified: {len(golden.images)} golden predictions agree {precision}{lost}"


def _drift(spec: RunSpec, dataset: Dataset, folder: RunFolder, screen: Screen) -> Drift | None:
    """Return the drift since the newest finished run; None unless it has the same source and other data."""
    earlier = find_earlier(folder.output, spec, dataset.digest)
    if earlier is None:
        return None
    drift = find_drift(earlier, dataset.summary, read_images(folder.path))
    screen.on_fact("drift", clip(drift.brief, _FACT_WIDTH))
    return drift
