"""Fine-tuning a pretrained backbone: phases, cached features, logistic regression, exact resume."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from helpers.downloads import Told
from helpers.small_training import Recorder, dark_and_light, do_train, learner_for, untimed, values

from trainer.data.dataset import Dataset
from trainer.data.progress import SilentProgress
from trainer.distributed.devices import find_cluster
from trainer.errors import DataError, StoppedError, UsageError
from trainer.evaluate.evaluator import Evaluator
from trainer.model.dropout import RowDropout
from trainer.model.layers import FusedBatchNormalization
from trainer.model.pretrained import get_backbone, get_head, stages_of
from trainer.model.weights import find_weights, load_weights
from trainer.spec import EarlyStoppingSpec, PretrainedSpec, load_spec
from trainer.spec.optimizer import FinetuneSpec
from trainer.training import Learner, TrainResult
from trainer.training import features as features_module
from trainer.training.features import FeatureCache, Features, build_features, describe_features
from trainer.training.phases import _build_forward, epochs_of_phases
from trainer.training.probe import assign_folds, fit_probe
from trainer.training.state import TrainState, is_out_of_patience

BACKBONE = [
    "data.image_size=32", "model={family: pretrained, dropout: 0.2}", "train.global_batch_size=22",
    "train.deterministic=true", "train.precision=float32", "optimizer.learning_rate=0.01",
]  # fmt: skip
PHASES = [
    *BACKBONE,
    "train.epochs=3",
    "train.finetune={last_stage_epochs: 1, layer_decay: 0.5}",
    "train.ema_decay=0.9",
]


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return dark_and_light()


@pytest.mark.parametrize(
    ("settings", "epochs", "expected"),
    [
        ({}, 1, [("frozen", 1)]),
        ({}, 5, [("frozen", 1), ("all", 4)]),
        ({"frozen_epochs": 3, "probe": "steps"}, 5, [("frozen", 3), ("all", 2)]),
        ({"frozen_epochs": 0, "last_stage_epochs": 2}, 2, [("last stage", 2)]),
        ({"last_stage_epochs": 2}, 4, [("frozen", 1), ("last stage", 2), ("all", 1)]),
    ],
)
def test_epochs_are_divided_into_phases(
    settings: dict[str, object], epochs: int, expected: list[tuple[str, int]]
) -> None:
    assert epochs_of_phases(FinetuneSpec.model_validate(settings), epochs) == expected


def test_finetuning_that_does_not_fit_is_refused() -> None:
    with pytest.raises(UsageError, match=r"train\.finetune requires model\.family pretrained"):
        load_spec(settings=["train.finetune={}"])
    with pytest.raises(UsageError, match="more frozen and last-stage epochs than"):
        load_spec(settings=[*BACKBONE, "train.epochs=2", "train.finetune.last_stage_epochs=2"])
    scratch = load_spec(settings=[*BACKBONE, "model.weights=none"])
    assert scratch.finetune is None


def weights_by_part(learner: Learner) -> list[list[np.ndarray]]:
    """Return copies of the trainable weights per stage, the head's weights, and the backbone statistics."""
    backbone = get_backbone(learner.model)
    parts = [*stages_of(backbone), get_head(learner.model).weights, backbone.non_trainable_variables]
    return [[weight.numpy() for weight in part] for part in parts]


@pytest.fixture(scope="module")
def whole(
    dataset: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Learner, TrainResult, list[list[list[np.ndarray]]]]:
    """A training run through all phases, its result, and the weights before it and after each epoch."""
    spec = load_spec(settings=PHASES)
    learner = learner_for(spec, dataset)
    weights = [weights_by_part(learner)]

    class Watching(Recorder):
        def on_epoch(self, row: Mapping[str, Any], epochs: int) -> None:
            weights.append(weights_by_part(learner))

    _, result = do_train(spec, dataset, tmp_path_factory.mktemp("whole"), Watching(), learner=learner)
    return learner, result, weights


def test_each_phase_changes_only_its_weights_and_no_statistics(whole: Any) -> None:
    _, _, weights = whole
    changed = [
        [
            any((one != other).any() for one, other in zip(*parts, strict=True))
            for parts in zip(before, after, strict=True)
        ]
        for before, after in itertools.pairwise(weights)
    ]
    stages = len(changed[0]) - 2
    assert changed[0] == [False] * stages + [True, False]  # logistic regression
    assert changed[1] == [False] * (stages - 1) + [True, True, False]
    assert changed[2] == [True] * stages + [True, False]


@pytest.mark.parametrize(
    ("trains_backbone", "updates_statistics"), [(False, False), (True, False), (True, True)]
)
def test_stochastic_depth_is_active_with_frozen_statistics_once_the_backbone_is_trained(
    trains_backbone: bool, updates_statistics: bool
) -> None:
    pixels = keras.Input((4, 4, 2))
    norm = FusedBatchNormalization(0.5)
    features = keras.layers.Flatten()(RowDropout(0.5, seed=0, whole_rows=True)(norm(pixels)))
    backbone = keras.Model(pixels, features)
    head = keras.Sequential([keras.Input((32,)), keras.layers.Identity()])
    images = 10.0 + np.random.default_rng(0).random((64, 4, 4, 2), np.float32)
    logits = _build_forward(backbone, head, trains_backbone, updates_statistics)(images).numpy()
    is_dropped = (logits == 0.0).all(axis=1)
    assert (16 < is_dropped.sum() < 48) == trains_backbone
    if not updates_statistics:
        expected = images.reshape(64, 32) / np.sqrt(1.0 + 1e-3) * (2.0 if trains_backbone else 1.0)
        np.testing.assert_allclose(logits[~is_dropped], expected[~is_dropped], rtol=1e-5)
    assert (norm.moving_mean.numpy() != 0.0).all() == updates_statistics


@pytest.mark.engine
def test_run_stopped_between_phases_resumes_bit_identically(
    whole: Any, dataset: Dataset, tmp_path: Path
) -> None:
    learner, result, _ = whole
    spec = load_spec(settings=[*PHASES, "train.steps_per_call=1"])
    with pytest.raises(StoppedError):
        do_train(spec, dataset, tmp_path, stop_at=3)  # within the last-stage epoch
    shutil.rmtree(tmp_path / "cache")  # as on another machine
    again, resumed = do_train(spec, dataset, tmp_path)
    assert untimed(resumed.history) == untimed(result.history)
    for name, value in values(learner).items():
        np.testing.assert_array_equal(value, values(again)[name], err_msg=name)


def test_cached_features_give_the_predictions_of_the_whole_model_and_are_computed_once(
    dataset: Dataset, tmp_path: Path
) -> None:
    spec = load_spec(settings=[*BACKBONE, "train.epochs=1"])
    learner, result = do_train(spec, dataset, tmp_path)
    row = result.history[0]
    assert row["train/accuracy"] == 1.0
    assert row["probe/cross_validated_accuracy"] > 0.9
    assert row["learning_rate"] == 0.0
    with_features = row["validation/loss"]
    assert Evaluator(learner.inference_model).loss_and_accuracy(dataset.held_out)["loss"] == pytest.approx(
        with_features, rel=1e-4
    )
    (cached,) = {path.parent.parent for path in (tmp_path / "cache").rglob("*.npy")}
    assert len(list(cached.rglob("*.npy"))) == 2  # one for each split
    again = build_features(
        spec,
        learner.inference_model,
        _without_pixels(dataset),
        find_cluster(),
        tmp_path / "cache",
        SilentProgress(),
    )
    assert again is not None
    train, names = _without_pixels(dataset).train, dataset.class_names
    # A resumed run predicts from the features too, with identical bits.
    last = Evaluator(learner.inference_model, features=again).final(is_frozen=spec.is_frozen)
    predicted = last.predict(train, names).probabilities
    assert again.of(train).shape == (44, 1280)
    np.testing.assert_array_equal(predicted, last.final(is_frozen=True).predict(train, names).probabilities)
    learner.model.get_layer("backbone").weights[0].assign_add(
        np.float32(0.5) * np.ones((3, 3, 3, 32), np.float32)
    )
    learner.fill_inference_model()
    assert not again.are_current()


def _without_pixels(dataset: Dataset) -> Dataset:
    """Return the dataset with only a training split, whose images cannot be read."""

    class Unreadable:
        shape = dataset.train.pixels.shape

        def prefetch(self, *passes: np.ndarray) -> None:
            """Do nothing."""

        def cache(self, indices: np.ndarray) -> None:
            """Do nothing."""

        def gather(self, indices: np.ndarray) -> np.ndarray:
            raise AssertionError("The features are computed again.")

    return replace(dataset, splits={"train": replace(dataset.train, pixels=Unreadable())})


def test_incomplete_feature_cache_is_used_and_a_damaged_file_is_recomputed(
    dataset: Dataset, tmp_path: Path
) -> None:
    spec = load_spec(settings=BACKBONE)
    learner = learner_for(spec, dataset)
    learner.fill_inference_model()

    def features() -> Features:
        built = build_features(
            spec, learner.inference_model, dataset, find_cluster(), tmp_path / "cache", SilentProgress()
        )
        assert built is not None
        return built

    whole = features().of(dataset.train)
    (path,) = (tmp_path / "cache").rglob("*.npy")
    for damage in (path.read_bytes()[:1000], b"", None):
        if damage is None:
            with path.open("wb") as file:
                np.save(file, whole[:20])  # what was written before the process was killed
        else:
            path.write_bytes(damage)
        np.testing.assert_allclose(features().of(dataset.train), whole, rtol=1e-5, atol=1e-6)


def test_logistic_regression_selects_the_penalty_on_training_images_at_any_scale() -> None:
    random = np.random.default_rng(0)
    labels = np.arange(300) % 3
    signal = np.eye(3)[labels] @ random.normal(size=(3, 40))
    features = (signal + 2 * random.normal(size=(300, 40))).astype(np.float32)
    features[:, 7] = 3.0  # no information
    probe = fit_probe(features, labels, np.ones(3), folds=5)
    assert probe.held_out is not None
    accuracy = float(np.mean(np.argmax(features @ probe.kernel + probe.bias, axis=1) == labels))
    assert np.mean(np.argmax(probe.held_out, axis=1) == labels) > 0.9
    assert accuracy >= 0.95
    scaled = fit_probe(1000 * features, labels, np.ones(3), folds=5)
    assert scaled.penalty == probe.penalty
    np.testing.assert_allclose(1000 * scaled.kernel, probe.kernel, rtol=0.05, atol=1e-3)
    noise = fit_probe(random.normal(size=(300, 40)), random.permutation(labels), np.ones(3), folds=5)
    assert noise.penalty < probe.penalty  # C: no signal, so the strongest penalty is best


def test_single_image_of_a_class_is_in_no_fold_and_other_classes_are_validated() -> None:
    random = np.random.default_rng(0)
    labels = np.array([0] * 20 + [1] * 20 + [2])
    features = 4 * np.eye(3)[labels] @ random.normal(size=(3, 8)) + random.normal(size=(41, 8))
    probe = fit_probe(features, labels, np.ones(3), folds=5)
    assert probe.held_out is not None
    right = np.argmax(probe.held_out, axis=1) == labels
    assert right[:40].mean() > 0.8
    assert not right[40]
    assert fit_probe(np.eye(3), np.arange(3), np.ones(3), folds=5).held_out is None
    assert np.bincount(assign_folds(np.array([0, 1, 0, 1, 0, 1]), 3)).tolist() == [2, 2, 2]


def test_fit_stops_on_request_and_rejects_too_many_images() -> None:
    answers = iter([False, False, True])
    labels = np.arange(40) % 2
    with pytest.raises(StoppedError, match="while the head was fitted"):
        fit_probe(np.eye(40), labels, np.ones(2), 5, lambda: next(answers))
    with pytest.raises(DataError, match="are not finite"):
        fit_probe(np.full((4, 2), np.nan), np.array([0, 1, 0, 1]), np.ones(2), 2)
    with pytest.raises(UsageError, match=r"--set train\.finetune\.probe=steps"):
        fit_probe(np.broadcast_to(np.float32(0), (10**6, 1280)), np.zeros(10**6, int), np.ones(1000), folds=5)


def test_head_is_trained_in_steps_on_cached_features_without_augmentation(
    dataset: Dataset, tmp_path: Path
) -> None:
    steps = [*BACKBONE, "train.epochs=4", "train.finetune={probe: steps, frozen_epochs: 4}"]
    spec = load_spec(settings=steps)
    learner = learner_for(spec, dataset)
    if not isinstance(spec.model, PretrainedSpec):
        raise AssertionError("The model is pretrained.")
    weights = find_weights(spec.model, tmp_path, SilentProgress())
    assert weights is not None
    load_weights(get_backbone(learner.inference_model), weights)
    learner.take_inference_weights()
    _, result = do_train(spec, dataset, tmp_path / "cached", learner=learner)
    assert result.history[-1]["train/loss"] < result.history[0]["train/loss"]
    assert list((tmp_path / "cached" / "cache").rglob("*.npy"))
    shorter = ["augment.flip=horizontal", "train.epochs=1", "train.finetune.frozen_epochs=1"]
    spec = load_spec(settings=[*steps, *shorter])
    learner = learner_for(spec, dataset)
    before = [weight.numpy() for weight in get_backbone(learner.model).weights]
    do_train(spec, dataset, tmp_path / "augmented", learner=learner)
    assert not list((tmp_path / "augmented" / "cache").rglob("*.npy"))
    for one, other in zip(before, get_backbone(learner.model).weights, strict=True):
        np.testing.assert_array_equal(one, other.numpy())


def test_patience_starts_with_the_last_phase() -> None:
    patience, state = EarlyStoppingSpec(patience_epochs=2), TrainState(best_epoch=1, best_score=0.5)
    ended = [
        epoch for epoch in range(1, 8) if is_out_of_patience(state, epoch, patience, first_of_last_phase=4)
    ]
    assert ended == [6, 7]
    assert is_out_of_patience(state, 3, patience)
    assert not is_out_of_patience(replace(state, best_epoch=0), 7, patience)


ROWS = np.arange(4000, dtype=np.float32).reshape(2000, 2)


def write_part(folder: Path, start: int, end: int) -> None:
    np.save(folder / f"{start:012d}.npy", ROWS[start:end])


@pytest.mark.parametrize(
    ("parts", "stored"),
    [
        ([(0, 504), (1000, 2000)], 504),
        ([(0, 504), (504, 1504), (1000, 2000)], 2000),
        ([(0, 504), (504, 1504), (1000, 1500), (1504, 1600)], 1600),
        ([(0, 20), (16, 1016)], 1016),
        ([(500, 1000)], 0),
        ([], 0),
    ],
)
def test_overlapping_files_of_a_feature_cache_are_read_up_to_the_first_gap(
    parts: list[tuple[int, int]], stored: int, tmp_path: Path
) -> None:
    for start, end in parts:
        write_part(tmp_path, start, end)
    (tmp_path / "notes.npy").write_bytes(b"other")
    cache = FeatureCache(tmp_path, SilentProgress())
    taken = cache.take(stored)
    assert taken is not None
    np.testing.assert_array_equal(taken.reshape(-1, 2), ROWS[:stored])
    assert cache.take(1) is None


def test_feature_cache_of_two_processes_is_complete_after_the_next_run(tmp_path: Path) -> None:
    for start, end in ((0, 504), (1000, 2000)):  # one process was stopped early
        write_part(tmp_path, start, end)
    computed = []
    for _ in range(2):
        cache = FeatureCache(tmp_path, SilentProgress())
        computed.append(0)
        for start in range(0, 2000, 8):
            if cache.take(8) is None:
                computed[-1] += 8
                cache.add(ROWS[start : start + 8])
        cache.flush()
    assert computed == [1496, 0]


def test_feature_cache_that_cannot_be_written_is_reported_once_and_training_continues(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for folder in (tmp_path / "file" / "key", tmp_path / "key"):
        cache = FeatureCache(folder, progress := Told())
        if folder.is_dir():  # replace the folder by a file while it is in use
            folder.rmdir()
            folder.write_bytes(b"")
        for _ in range(3):
            assert cache.take(1000) is None
            cache.add(ROWS[:1000])
        cache.flush()
        (message,) = progress.said
        assert "The features cannot be cached" in message
        assert "cannot be written" in message


def test_features_are_recomputed_after_any_change_that_affects_them(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def about(*settings: str, offset: float = 0.0) -> str:
        rescaling = keras.layers.Rescaling([1.0], [offset], name="rescaling")
        backbone = keras.Sequential([keras.Input((32, 32, 1)), rescaling])
        return "|".join(describe_features(load_spec(settings=settings), backbone, dataset, find_cluster()))

    pretrained = ("model={family: pretrained}", "data.image_size=32")
    descriptions = [about(*pretrained)]
    assert about(*pretrained, "optimizer.learning_rate=0.5") == descriptions[0]
    descriptions.append(about(*pretrained, "model.backbone=resnet50v2"))
    descriptions.append(about(*pretrained, "data.resize=crop"))
    descriptions.append(about(*pretrained, offset=1.0))
    monkeypatch.setattr(features_module, "__version__", "9.0")
    descriptions.append(about(*pretrained))
    monkeypatch.setattr(keras, "__version__", "9.0")
    descriptions.append(about(*pretrained))
    assert len(set(descriptions)) == 6
