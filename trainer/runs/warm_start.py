"""Initial weights from another run or from pretrained weights.

The exported weights of another run, or the published weights of a backbone, are loaded into a new learner.
Optimizer, schedule and all other state are new.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import keras
import tensorflow as tf

from trainer.data.bucket import fetch_bucket
from trainer.data.dataset import Dataset
from trainer.data.items import all_normalized
from trainer.data.progress import Progress
from trainer.distributed.devices import Cluster
from trainer.errors import UsageError
from trainer.export.load import read_description
from trainer.model.pretrained import get_backbone
from trainer.model.weights import WeightsFile, find_weights, load_weights
from trainer.runs import (
    RunFolder,
    Start,
    find_start,
    read_start_weights,
    read_started_from,
    read_weights,
    require_same_start,
)
from trainer.runs.publish import MODEL, find_run, is_finished, require_published_model
from trainer.spec import PretrainedSpec, RunSpec
from trainer.spec.schema import CHAMPION, LATEST, ModelSpec
from trainer.storage.store import Store, is_bucket
from trainer.training import HostSync, Learner
from trainer.training.checkpoint import has_readable

_MAX_MODEL_BYTES = 1 << 40
_MISSING_RUN = {LATEST: "there is no finished run yet", CHAMPION: "there is no champion yet"}
_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
_NETWORK = "model/"
"""Prefix of the variables of the network; the others belong to the rejection of unknown images."""
_Record = Mapping[str, str | None] | None
"""The entry for a weights file in environment.json."""


class WarmStartObserver(Progress, Protocol):
    """Progress output that also reports the source of the weights."""

    def on_fact(self, name: str, text: str) -> None:
        """Report a named fact."""


def begin(
    spec: RunSpec,
    learner: Learner,
    dataset: Dataset,
    cluster: Cluster,
    folder: RunFolder,
    cache_dir: Path,
    screen: WarmStartObserver,
) -> Start:
    """Load the initial weights of another run or of a pretrained backbone; return the start of the run.

    If the run has a checkpoint, the result describes its original start. Raises UsageError if the other run
    or the weights file does not exist, and for weights of another network.
    """
    sync = HostSync(cluster.group)
    run = _find_run(spec.train.start_from, folder) if cluster.is_chief else None
    parent = _load_run_weights(learner, dataset.class_names, run, sync, cache_dir, screen)
    weights = _load_pretrained(spec.model, learner, sync, cache_dir, screen, folder, run, bool(parent))
    if parent:
        screen.on_fact("start", f"weights of {parent}")
    elif not folder.newest_checkpoint and spec.train.start_from in _MISSING_RUN:
        screen.on_fact("start", f"random weights: {_MISSING_RUN[spec.train.start_from]}")
    started_from = parent or read_started_from(folder.path) if folder.newest_checkpoint else parent
    batch, rate = spec.train.global_batch_size, spec.optimizer.learning_rate
    start = Start(dataset.digest, learner.precision, batch, rate, started_from, weights)
    if folder.newest_checkpoint:
        require_same_start(folder.path, start)
    return start


def new_weights_sha256(spec: RunSpec, folder: RunFolder, cache_dir: Path, screen: WarmStartObserver) -> str:
    """Return the digest of the weights file with which a new run of `spec` begins; empty for none.

    Raises the errors of finding the file, or the run that it starts from.
    """
    if not isinstance(spec.model, PretrainedSpec):
        return ""
    record = _new_weights(spec.model, find_start(folder.output, spec.train.start_from), cache_dir, screen)[1]
    return (record or {}).get("sha256") or ""


def _new_weights(
    spec: PretrainedSpec, run: Store | None, cache_dir: Path, screen: WarmStartObserver
) -> tuple[WeightsFile | None, _Record]:
    """Return the weights file with which a new run begins, and its entry for environment.json.

    A run that starts from another `run` reads no file; its entry is that of the other run, if any.
    """
    if run is not None:
        return None, read_weights(run)
    file = find_weights(spec, cache_dir, screen)
    return file, None if file is None else file.record()


def _load_pretrained(
    spec: ModelSpec,
    learner: Learner,
    sync: HostSync,
    cache_dir: Path,
    screen: WarmStartObserver,
    folder: RunFolder,
    run: Store | None,
    is_started: bool,
) -> _Record:
    """Load pretrained weights into the backbones of all processes, unless there are newer weights.

    Newer weights are those of another `run` (`is_started`, on all processes) or of a checkpoint; no file is
    read then.

    Returns the entry for environment.json, None for random weights. Raises the errors of finding and reading.
    """
    if not isinstance(spec, PretrainedSpec):
        return None
    is_resumed = sync.broadcast(not is_started and has_readable(folder.checkpoints))
    file: WeightsFile | None = None
    record: _Record = None
    if sync.is_chief and is_resumed:
        record = read_start_weights(folder.path)
    elif sync.is_chief:
        file, record = _new_weights(spec, run, cache_dir, screen)
    if file is not None:
        screen.on_fact("weights", f"{file.origin}, licence {file.licence or 'unknown'}")
        load_weights(get_backbone(learner.fill_inference_model()), file)
    has_newer = is_resumed or is_started
    variables = {} if has_newer else learner.inference_variables()
    shared: _Record = sync.broadcast_variables(variables, record)
    if shared is not None and not has_newer:
        learner.take_inference_weights()
    return shared


def _find_run(start_from: str, folder: RunFolder) -> Store | None:
    """Return the run whose weights to load; None for random ones, or if a checkpoint has newer ones."""
    if not folder.newest_checkpoint:
        return find_start(folder.output, start_from)
    before = read_started_from(folder.path)
    if not before or has_readable(folder.checkpoints):
        return None
    run = find_run(before)
    if not is_finished(run):
        raise UsageError(
            "No checkpoint of this run can be read, and the run that its weights came from does not exist.",
            "Restart it with --fresh, or choose another --run-name.",
            received=before,
        )
    return run  # the run restarts from step 0 with its original weights


def _load_run_weights(
    learner: Learner,
    class_names: tuple[str, ...],
    run: Store | None,
    sync: HostSync,
    cache_dir: Path,
    progress: Progress,
) -> str:
    """Load the weights of the chief's `run` into the learners of all processes; return its URI or path.

    Returns "" for no run. Raises UsageError for a model of other classes or another network, DataError for a
    model that differs from the published one.
    """
    if run is not None:
        model = run.below(MODEL).uri
        folder = (
            fetch_bucket(model, cache_dir, _MAX_MODEL_BYTES, progress) if is_bucket(model) else Path(model)
        )
        require_published_model(run, folder)
        _require_same_classes(class_names, folder)
        _restore(learner.inference_model, folder)
    uri = None if run is None else run.uri if is_bucket(run.uri) else os.path.abspath(run.uri)
    source = sync.broadcast_variables(learner.inference_variables(), uri)
    if source is not None:
        learner.take_inference_weights()
    return source or ""


def _require_same_classes(class_names: tuple[str, ...], folder: Path) -> None:
    before, names = all_normalized(read_description(folder)["class_names"]), all_normalized(class_names)
    if before != names:
        differing = sorted(set(before) ^ set(names)) or ["their order"]
        raise UsageError(
            "The model in train.start_from was trained on other classes than the data.",
            "Use a model of the same classes, or set train.start_from to scratch.",
            received=f"{', '.join(differing)[:200]} in only one of the data and {folder}",
        )


def _restore(model: keras.Model, folder: Path) -> None:
    """Restore the SavedModel in `folder` into `model`. Raises UsageError if it is of another network."""
    path = str(folder / "variables" / "variables")
    try:
        names = [name for name, _ in tf.train.list_variables(path)]
        saved = [name for name in names if name.startswith(_NETWORK) and name.endswith(_VALUE)]
        if len(saved) != len(model.weights):
            raise ValueError(f"{len(saved)} variables instead of {len(model.weights)}")
        tf.train.Checkpoint(model=model).read(path).assert_existing_objects_matched()
    except tf.errors.OpError as error:
        raise UsageError(
            "The model of the run in train.start_from cannot be read.",
            "Run `trainer verify RUN` to list what is damaged.",
            received=f"{folder} ({error.message[:120]})",
        ) from None
    except (ValueError, AssertionError) as error:
        raise UsageError(
            "train.start_from names a model of another network.",
            "Use the model settings of that run, or set train.start_from to scratch.",
            received=f"{folder} ({str(error).splitlines()[0][:120]})",
        ) from None
