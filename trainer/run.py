"""Training pipeline of one run: data, model, training, evaluation, export, publication.

`run` only defines the order of the steps, from a spec to a finished run folder. Each step returns the inputs
of the next one.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any, Protocol

import keras

from trainer.cluster import Cluster, choose_precision, find_cluster
from trainer.data.batches import steps_per_epoch
from trainer.data.dataset import Dataset, format_found
from trainer.data.items import Rejection
from trainer.data.labels import all_normalized, normalized
from trainer.data.load import load_dataset
from trainer.data.progress import Progress
from trainer.data.statistics import describe_images
from trainer.evaluate import Evaluator, predict_splits, thresholds_of
from trainer.exits import DataError, UnchangedError, UsageError
from trainer.export import export_model, make_golden, verify_export
from trainer.hosts import Peers
from trainer.metrics import AnyPredictions, compute_metrics
from trainer.objective import objective_of
from trainer.prediction_files import write_predictions
from trainer.publish import publish
from trainer.report.drift import Drift, find_drift
from trainer.report.inputs import report_inputs
from trainer.report.label_page import write_label_report
from trainer.report.names import clip
from trainer.report.page import write_report
from trainer.report.verdict import Verdict
from trainer.run_folder import (
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
from trainer.scaling import describe_scaling, require_equal_shares, require_whole_batch, scaled_spec
from trainer.spec import RunSpec, format_size
from trainer.stop import Stop
from trainer.storage.folders import replace_folder
from trainer.storage.local import write_json
from trainer.train import Learner, Observer, Saver, TrainResult, build_learner, train
from trainer.train.features import Features, build_features
from trainer.train.whiten import whiten_first_layer
from trainer.warm_start import begin, new_weights_sha256

# 80 columns, less the 11 of the label before a fact.
_FOUND_WIDTH = 69
# Share of the grace period for the last checkpoint; the rest is for process exit.
_GRACE_SHARE = 0.8


class Screen(Observer, Progress, Protocol):
    """Reporting interface of a run: facts, data progress, training progress."""

    def on_fact(self, name: str, text: str) -> None:
        """Report one fact, such as the devices or the data."""


def run(
    spec: RunSpec, folder: RunFolder, cache_dir: Path, screen: Screen, stop: Stop, peers: Peers
) -> Verdict | None:
    """Train and publish the run of `spec` in `folder` with `peers`, resuming from its newest checkpoint.

    Returns None if another process is the chief. See `trainer.exits` for the errors it raises.
    """
    cluster = find_cluster(spec.train.deterministic, spec.train.devices, peers)
    # With several processes TensorFlow's SigtermNotifier has replaced the SIGTERM handler.
    stop.listen_on()
    screen.on_fact("devices", cluster.description)
    dataset = load_dataset(spec.data, cache_dir, screen, lambda found: _note_rejected(folder, found), peers)
    folder.require_lease()  # the lease may expire during loading; files are written from here on
    screen.on_fact("data", format_found(dataset, _FOUND_WIDTH))
    _require_wanted(spec, dataset, folder, peers, cache_dir, screen)
    scaled = _settled(_scaled(spec, cluster, dataset, screen), cluster, folder)
    steps = steps_per_epoch(len(dataset.train.labels), scaled.train.global_batch_size)
    learner = build_learner(scaled, len(dataset.class_names), steps, cluster)
    whiten_first_layer(learner, dataset.train, cluster)
    start = begin(scaled, learner, dataset, cluster, folder, cache_dir, screen)
    _keep_dataset(dataset, cluster, folder, screen)
    environment = write_environment(folder.path, spec, cluster.description, start, current_command())
    # A restart can use a checkpoint only with the files that describe the run.
    folder.keep()
    screen.on_fact("model", _describe(spec, learner))
    model, objective = learner.inference_model, objective_of(spec.data.labels)
    features = build_features(scaled, model, dataset, cluster, cache_dir, screen)
    evaluator = Evaluator(model, cluster, None if spec.model.average_mirror else features, objective)
    result = _train(learner, evaluator, dataset, scaled, cluster, folder, screen, stop, features)
    predictions = predict_splits(evaluator.final(spec.is_frozen), dataset)
    if not cluster.is_chief:
        peers.share(b"")  # barrier: the chief exports and publishes
        return None
    metrics = _keep_metrics(predictions, result, folder)
    screen.on_fact("export", _export(model, dataset, spec, folder, thresholds_of(predictions)))
    verdict = _report(spec, environment, dataset, result, predictions, metrics, folder, screen)
    require_complete(folder.path)
    _publish(folder, screen)
    peers.share(b"published")
    return verdict


def _require_wanted(
    spec: RunSpec, dataset: Dataset, folder: RunFolder, peers: Peers, cache_dir: Path, screen: Screen
) -> None:
    """Check the class names, and skip a run whose data and spec have not changed.

    Raises UsageError for unknown classes in train.class_weights, DataError for a class name with a line
    break. Raises UnchangedError on all processes if the chief finds a finished run with equal data and spec.
    """
    _require_classes(spec, dataset)
    if not spec.publish.skip_unchanged:
        return
    is_new = peers.place.is_chief and not folder.newest_checkpoint
    found = ""
    if is_new:
        weights_sha256 = new_weights_sha256(spec, folder, cache_dir, screen)
        found = find_same_run(folder.output, spec, dataset.digest, weights_sha256)
    name = peers.share(found.encode()).decode()
    if name:
        raise UnchangedError(
            f"Neither the data nor the spec changed since the run {name}, so there is nothing to do.", name
        )


def _scaled(spec: RunSpec, cluster: Cluster, dataset: Dataset, screen: Screen) -> RunSpec:
    replicas = cluster.strategy.num_replicas_in_sync
    require_whole_batch(spec, replicas, len(dataset.train.labels))
    if (said := describe_scaling(spec, replicas)) is not None:
        screen.on_fact("batch", said)
    scaled = scaled_spec(spec, replicas)
    if cluster.device_kind == "TPU":
        require_equal_shares(scaled, replicas, len(dataset.train.labels))
    return scaled


def _settled(spec: RunSpec, cluster: Cluster, folder: RunFolder) -> RunSpec:
    """Return `spec` with the precision "auto" resolved by the chief; a resumed run keeps its precision."""
    if spec.train.precision != "auto":
        return spec
    began = read_precision(folder.path) if folder.newest_checkpoint else None
    chosen = began or choose_precision("auto", cluster, spec.has_depthwise)
    chosen = cluster.peers.share(chosen.encode()).decode()
    return spec.model_copy(update={"train": spec.train.model_copy(update={"precision": chosen})})


def _train(
    learner: Learner,
    evaluator: Evaluator,
    dataset: Dataset,
    spec: RunSpec,
    cluster: Cluster,
    folder: RunFolder,
    screen: Screen,
    stop: Stop,
    features: Features | None,
) -> TrainResult:
    def is_stopped() -> bool:
        folder.check_lease()
        return stop.is_requested()

    def is_overdue() -> bool:
        return stop.is_overdue(_GRACE_SHARE * spec.train.grace_seconds)

    with stop.patience(), Saver(folder.checkpoints, folder.keep, is_overdue, folder.require_lease) as saver:
        if cluster.is_chief:  # only the chief writes checkpoints
            stop.outcome = saver.resume_advice
        return train(
            learner, dataset, spec, cluster, saver, screen,
            lambda: evaluator.loss_and_accuracy(dataset.held_out, is_stopped), is_stopped, features,
        )  # fmt: skip


def _publish(folder: RunFolder, screen: Screen) -> None:
    """Upload the last files to the output, then publish the run."""
    waiting = folder.mirror.waiting_bytes()
    if waiting:
        task = screen.start(f"Writing {folder.at('')}", waiting, "B")
        try:
            folder.keep(task.advance)
        finally:
            task.finish()
    folder.keep(is_whole=True)
    latest = publish(folder.output, folder.name, folder.path, folder.require_lease)
    if latest != folder.name:
        screen.on_fact("latest", f"still {latest}, which was published after this run")


def _note_rejected(folder: RunFolder, rejected: tuple[Rejection, ...]) -> None:
    """Write the rejected images before loading can fail; a run with a checkpoint keeps its file."""
    if not folder.newest_checkpoint:
        write_rejected(folder.path, rejected)


def _keep_dataset(dataset: Dataset, cluster: Cluster, folder: RunFolder, screen: Screen) -> None:
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
            raise DataError(f"The name of a class can't hold a line break; rename it. Received: {name!r}")
    weights = spec.train.class_weights
    known = all_normalized(dataset.class_names)
    unknown = [name for name in weights if normalized(name) not in known] if isinstance(weights, dict) else []
    if unknown:
        raise UsageError(
            f"train.class_weights names a class that the data don't have; there are: "
            f"{', '.join(dataset.class_names)}. Received: {', '.join(unknown)}"
        )


def _describe(spec: RunSpec, learner: Learner) -> str:
    weights = learner.model.count_params()
    return (
        f"{spec.model.family}, {weights:,} weights, {format_size(spec.data.image_size)}, "
        f"{learner.precision}; {spec.train.epochs} epochs of {learner.steps_per_epoch} steps"
    )


def _keep_metrics(
    predictions: dict[str, AnyPredictions], result: TrainResult, folder: RunFolder
) -> dict[str, float]:
    """Write predictions.csv, metrics.json and timings.json; return the metrics, keyed split/metric."""
    write_predictions(folder.path / "predictions.csv", list(predictions.values()))
    metrics = {
        f"{split}/{name}": value
        for split, each in predictions.items()
        for name, value in compute_metrics(each).items()
    }
    write_json(folder.path / "metrics.json", metrics | {"training/best_epoch": result.best_epoch})
    times = {"training_seconds": result.seconds, "epochs": result.timings}
    write_json(folder.path / "timings.json", times)
    return metrics


def _export(
    model: keras.Model, dataset: Dataset, spec: RunSpec, folder: RunFolder, thresholds: list[float]
) -> str:
    """Export the model, verify it in a fresh process, and only then move it to its final path."""
    # A unique name: a process that was paused here may continue while another one exports.
    temporary = folder.path / f".model.{secrets.token_hex(6)}.tmp"
    folder.require_lease()
    export_model(temporary, model, dataset.class_names, spec.data, thresholds)
    golden = make_golden(model, dataset.held_out, objective_of(spec.data.labels))
    difference = verify_export(temporary, golden)
    replace_folder(temporary, folder.model)
    agreement = f"to {difference:.0e}" if difference else "exactly"
    lost = f" ({golden.lost} from the cache: the source has changed since)" if golden.lost else ""
    return f"saved and verified: {len(golden.images)} golden predictions agree {agreement}{lost}"


def _drift(spec: RunSpec, dataset: Dataset, folder: RunFolder, screen: Screen) -> Drift | None:
    """Return the drift since the newest finished run; None unless it has the same source and other data."""
    earlier = find_earlier(folder.output, spec, dataset.digest)
    if earlier is None:
        return None
    drift = find_drift(earlier, dataset.summary, read_images(folder.path))
    screen.on_fact("drift", clip(drift.brief, _FOUND_WIDTH))
    return drift


def _report(
    spec: RunSpec,
    environment: dict[str, Any],
    dataset: Dataset,
    result: TrainResult,
    predictions: dict[str, AnyPredictions],
    metrics: dict[str, float],
    folder: RunFolder,
    screen: Screen,
) -> Verdict:
    drift = _drift(spec, dataset, folder, screen)
    inputs = report_inputs(folder.name, spec, environment, dataset, result, predictions, metrics, drift)
    write = write_label_report if spec.data.labels == "multi" else write_report
    return write(folder.path, inputs)
