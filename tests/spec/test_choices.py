"""Settings chosen from the data: the choices, explicit settings that override them, and restarts."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.trainer_process import trainer

from trainer.cli.config import choose_settings
from trainer.cli.console import Console
from trainer.data.inspect import inspect_source
from trainer.data.progress import SilentProgress
from trainer.errors import UsageError
from trainer.spec import (
    OptimizerSpec,
    PretrainedSpec,
    RunSpec,
    dump_shown_spec,
    dump_spec,
    explicit_settings,
    load_spec,
    parse_spec,
    read_spec,
    with_choices,
)
from trainer.spec.choices import MOST_FITTED, Choice, Facts, Goal, choose
from trainer.spec.optimizer import FinetuneSpec
from trainer.spec.schema import DataSpec
from trainer.training.probe import MAX_WORK

PHOTOS = Facts(3000, {"cats": 1500, "dogs": 1500}, 360, "efficientnet-lite0")


def chosen(goal: Goal, facts: Facts) -> dict[str, object]:
    """Return the relevant settings after merging the choice into a valid spec."""
    spec = with_choices(
        load_spec(recipe=goal, overrides={"data.source": "photos"}), choose(goal, facts).settings
    )
    assert spec.choose == "none"
    finetune = spec.finetune
    return {
        "family": spec.model.family,
        "epochs": spec.train.epochs,
        "size": spec.data.image_size,
        "phases": None if finetune is None else (finetune.probe, finetune.frozen),
        "weights": spec.train.class_weights,
    }


def test_auto_chooses_a_probe_for_photos_and_fine_tuning_for_small_images() -> None:
    small = replace(PHOTOS, side=32, images=5000)
    probe = {"family": "pretrained", "epochs": 1, "size": 224, "phases": ("logistic", 1), "weights": "none"}
    assert chosen("auto", PHOTOS) == probe
    assert chosen("fast", small) == probe
    assert chosen("auto", small) == probe | {"epochs": 10, "size": 128}
    assert chosen("best", small)["epochs"] == 28
    assert chosen("best", PHOTOS) == probe | {"epochs": 5}
    for settings in ({"train.epochs": 1}, {"train.finetune.probe": "steps"}, {"train.finetune": None}):
        assert chosen("best", replace(PHOTOS, user_settings=settings)) == probe
    held_out = choose("auto", replace(small, held_out=10_000)).settings["train"]["validate_every_epochs"]
    assert held_out == 2  # keeps validation shorter than training
    assert chosen("auto", replace(PHOTOS, side=None)) == probe


@pytest.mark.parametrize(
    ("settings", "phases", "reason"),
    [
        ((), (1, 4, 0), "epochs: 4 of its last stage"),
        (("train.epochs=9",), (1, 8, 0), "epochs: 8 of its last stage"),
        (("train.finetune.last_stage_epochs=2",), (1, 2, 0), "epochs: 2 of its last stage"),
        (("train.finetune.layer_decay=0.9",), (1, 4, 0), "epochs: 4 of its last stage"),
        (
            ("train.epochs=9", "train.finetune.last_stage_epochs=2"),
            (1, 2, 6),
            "epochs: 2 of its last stage, 6 of all weights",
        ),
    ],
)
def test_best_finetunes_the_last_stage_on_photos(
    settings: tuple[str, ...], phases: tuple[int, int, int], reason: str
) -> None:
    spec, reasons = resolved(*settings, goal="best")
    finetune = spec.finetune
    assert finetune is not None
    whole = spec.train.epochs - finetune.frozen_epochs - finetune.last_stage_epochs
    assert (finetune.frozen_epochs, finetune.last_stage_epochs, whole) == phases
    assert reasons["training"].endswith(reason)


def test_last_stage_is_finetuned_for_fewer_epochs_on_very_many_photos() -> None:
    assert chosen("best", replace(PHOTOS, images=200_000))["epochs"] == 3
    assert chosen("best", replace(PHOTOS, images=2_000_000))["epochs"] == 2


def test_head_is_trained_in_steps_for_very_many_images() -> None:
    many = replace(PHOTOS, images=2_000_000, classes={str(number): 2000 for number in range(1000)})
    assert chosen("auto", many)["phases"] == ("steps", 20)


def test_network_is_trained_from_scratch_with_a_reason_without_pretrained_weights() -> None:
    facts = replace(PHOTOS, backbone=None, why_none="no pretrained weights are installed")
    assert chosen("auto", facts) | {"phases": None} == {
        "family": "residual", "epochs": 40, "size": 128, "phases": None, "weights": "none",
    }  # fmt: skip
    assert "no pretrained weights are installed" in dict(choose("auto", facts).reasons)["model"]


def test_unequal_classes_are_weighted_and_named() -> None:
    facts = replace(PHOTOS, classes={"cats": 1000, "dogs": 100})
    assert chosen("auto", facts)["weights"] == "balanced"
    assert dict(choose("auto", facts).reasons)["classes"] == "weighted: cats has 1,000 images, dogs only 100"


def test_choice_is_explained_in_few_lines() -> None:
    for goal in ("auto", "fast", "best"):
        for facts in (PHOTOS, replace(PHOTOS, side=32), replace(PHOTOS, backbone=None, why_none="none")):
            choice: Choice = choose(goal, facts)
            assert 3 <= len(choice.reasons) <= 5
            assert choice.reasons[0] == ("data", f"3,000 images in 2 classes, about {facts.side} px")


def resolved(*settings: str, facts: Facts = PHOTOS, goal: Goal = "auto") -> tuple[RunSpec, dict[str, str]]:
    """Return the spec that the recipe of `goal` makes of `settings`, and its reasons."""
    spec = load_spec(recipe=goal, settings=settings)
    choice = choose(goal, replace(facts, user_settings=explicit_settings(spec)))
    return with_choices(spec, choice.settings), dict(choice.reasons)


def test_explicit_settings_override_choices_and_appear_in_the_reasons() -> None:
    spec, reasons = resolved("data.image_size=96", "train.epochs=4")
    assert (spec.data.image_size, spec.data.resize, spec.train.epochs) == (96, "crop", 4)
    assert spec.finetune == FinetuneSpec(probe="steps", frozen_epochs=4)
    assert "frozen, at 96 px" in reasons["model"]
    assert reasons["training"] == "4 epochs of the head on cached features"
    spec, reasons = resolved("train.finetune.folds=3")
    assert spec.train.finetune is not None
    assert (spec.train.finetune.folds, spec.train.epochs) == (3, 1)
    assert reasons["training"] == "according to train.finetune"
    spec, reasons = resolved("train.epochs=4", facts=replace(PHOTOS, side=32))
    assert spec.train.epochs == 4
    assert reasons["training"].startswith("3 epochs of all weights")


@pytest.mark.parametrize("resize", ["pad", "stretch"])
def test_settings_that_conflict_with_explicit_ones_are_not_chosen(resize: str) -> None:
    spec, _ = resolved(f"data.resize={resize}")
    assert (spec.data.resize, spec.data.crop_fraction) == (resize, 1.0)
    assert resolved("data.crop_fraction=0.9")[0].data.crop_fraction == 0.9
    spec, _ = resolved("augment.translate_pixels=4", facts=replace(PHOTOS, backbone=None))
    assert spec.augment.crop is None
    small = replace(PHOTOS, side=32)
    spec, _ = resolved("optimizer.name=sgd", "optimizer.momentum=0.9", facts=small)
    assert spec.optimizer == OptimizerSpec(name="sgd", momentum=0.9)
    assert resolved("optimizer.final_fraction=0.1", facts=small)[0].optimizer.final_fraction == 0.1


def test_conflicting_explicit_settings_are_refused_after_the_choices() -> None:
    with pytest.raises(UsageError, match=r"train\.finetune requires model\.family pretrained"):
        with_choices(load_spec(recipe="auto", settings=["model.family=plain", "train.finetune.folds=3"]), {})
    with pytest.raises(
        UsageError, match=r"probe logistic trains the head in a single epoch.*Received: frozen_epochs 5"
    ):
        resolved("train.finetune={probe: logistic, frozen_epochs: 5}", "train.epochs=5")


def test_reasons_report_that_features_exceed_the_cache() -> None:
    facts = replace(PHOTOS, images=1_000_000, classes={str(number): 10_000 for number in range(100)})
    assert "set data.cache_mib to 4882" in resolved(facts=facts)[1]["training"]
    assert "on cached features" in resolved("data.cache_mib=5000", facts=facts)[1]["training"]


def test_largest_chosen_logistic_regression_is_within_its_limit() -> None:
    assert MOST_FITTED * 2048 * FinetuneSpec().folds <= MAX_WORK


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["model.dropout=0.5"], "none: the spec sets the model, family residual"),
        (["model.weights=none"], "none: the spec sets the model, family pretrained"),
    ],
)
def test_explicit_model_prevents_choices_and_the_source_is_not_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], settings: list[str], words: str
) -> None:
    overrides = {"data.source": str(tmp_path / "missing")}
    with Console(1.0) as console:
        spec = choose_settings(load_spec(None, "auto", settings, overrides), tmp_path, console)
    assert spec == load_spec(None, None, settings, overrides).model_copy(update={"recipe": "auto"})
    assert words in capsys.readouterr().out


def test_explicit_backbone_is_used_by_the_choice(photos: Path, tmp_path: Path) -> None:
    spec = load_spec(None, "auto", ["model.backbone=resnet50v2"], {"data.source": str(photos)})
    with Console(1.0) as console:
        spec = choose_settings(spec, tmp_path, console)
    assert isinstance(spec.model, PretrainedSpec)
    assert (spec.model.backbone, spec.data.image_size) == ("resnet50v2", 128)


def test_images_too_small_for_pretrained_weights_are_trained_from_scratch(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = load_spec(None, "auto", ["data.image_size=28"], {"data.source": str(photos)})
    with Console(1.0) as console:
        spec = choose_settings(spec, tmp_path, console)
    assert (spec.model.family, spec.data.image_size) == ("residual", 28)
    assert "pretrained weights need at least 32 pixels" in capsys.readouterr().out


def test_resumed_run_keeps_its_choices_unless_recipe_changes_or_run_is_fresh(
    photos: Path, tmp_path: Path
) -> None:
    overrides = {"data.source": str(photos), "output": str(tmp_path), "run_name": "one"}
    begun = load_spec(None, "cats-vs-dogs", ["train.epochs=7"], overrides)
    begun = begun.model_copy(update={"recipe": "auto"})
    run = tmp_path / "one"
    run.mkdir()

    def chosen_epochs(recipe: str, text: str, is_fresh: bool = False) -> int:
        (run / "spec.yaml").write_text(text)
        with Console(1.0) as console:
            spec = load_spec(None, recipe, (), overrides)
            return int(choose_settings(spec, tmp_path, console, is_fresh).train.epochs)

    assert chosen_epochs("auto", dump_spec(begun)) == 7
    assert chosen_epochs("auto", dump_spec(begun), is_fresh=True) != 7
    assert chosen_epochs("best", dump_spec(begun)) != 7
    unresolved = load_spec(None, "auto", ["train.log_interval_seconds=7.0"], overrides)
    assert chosen_epochs("auto", dump_spec(unresolved)) != 7


def test_displayed_spec_keeps_its_open_choices() -> None:
    shown = dump_shown_spec(load_spec(recipe="auto", overrides={"data.source": "photos"}))
    assert "family" not in shown
    assert load_spec(text=shown) == load_spec(recipe="auto", overrides={"data.source": "photos"})


def test_spec_with_open_choices_is_written_without_defaults_and_a_resolved_one_in_full() -> None:
    spec = load_spec(recipe="auto", overrides={"data.source": "photos"}, settings=["seed=3"])
    assert parse_spec(dump_spec(spec), "spec") == spec
    written = {"choose: auto", "data:", "  source: photos", "recipe: auto", "seed: 3"}
    assert set(dump_spec(spec).splitlines()) == written
    whole = with_choices(spec, choose("auto", PHOTOS).settings)
    assert load_spec(text=dump_spec(whole)) == whole


def test_source_is_inspected_by_image_headers(photos: Path, tmp_path: Path) -> None:
    spec = load_spec(overrides={"data.source": str(photos)})
    outlook = inspect_source(spec.data, tmp_path, SilentProgress())
    assert outlook is not None
    assert outlook.classes == {"discs": 8, "squares": 8, "stripes": 8}
    assert outlook.side == 32
    for split, share in (("train", range(6)), ("test", range(6, 8))):
        for name in outlook.classes:
            (tmp_path / "split" / split / name).mkdir(parents=True)
            for index in share:
                shutil.copy(photos / name / f"{index}.png", tmp_path / "split" / split / name)
    outlook = inspect_source(DataSpec(source=str(tmp_path / "split")), tmp_path, SilentProgress())
    assert outlook is not None
    assert (outlook.images, outlook.held_out, outlook.classes["discs"]) == (18, 6, 6)
    split_facts = replace(PHOTOS, held_out=1000)
    assert dict(choose("auto", split_facts).reasons)["data"].endswith("360 px, 1,000 more held out")


@pytest.mark.engine
def test_fast_recipe_trains_and_exports_generated_images(photos: Path, tmp_path: Path) -> None:
    arguments = (
        "train",
        "--recipe",
        "fast",
        "--data",
        photos,
        "--output",
        tmp_path / "runs",
        "--run-name",
        "one",
    )
    done = trainer(*arguments, cache=tmp_path / "cache")
    assert done.returncode == 0, done.stderr
    assert "efficientnet-lite0 with pretrained weights, frozen, at 224 px" in done.stdout
    assert "golden predictions agree" in done.stdout
    run = tmp_path / "runs" / "one"
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["validation/accuracy"] > 0.9
    spec = read_spec(run / "spec.yaml")
    assert (spec.choose, spec.recipe, spec.data.image_size) == ("none", "fast", 224)
    weights = json.loads((run / "environment.json").read_text())["weights"]
    assert weights["licence"] == "Apache-2.0"
    assert weights["sha256"] in (run / "report.html").read_text()
    assert "This run is finished" in trainer(*arguments, cache=tmp_path / "cache").stdout
    answer = trainer("predict", run, photos / "discs" / "0.png", cache=tmp_path / "cache")
    assert "discs" in answer.stdout


def test_another_source_does_not_inherit_the_checksum(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_text("recipe: cifar10\ndata: {source: my_photos.zip}\n")
    checksum = f"sha256:{'0' * 64}"
    assert load_spec(recipe="cifar10").data.checksum is not None
    assert load_spec(file).data.checksum is None
    assert load_spec(recipe="cifar10", overrides={"data.source": "x"}).data.checksum is None
    assert load_spec(recipe="cifar10", settings=["data.source=x"]).data.checksum is None
    both = ["data.source=x", f"data.checksum={checksum}"]
    assert load_spec(recipe="cifar10", settings=both).data.checksum == checksum
    assert load_spec(recipe="cifar10", settings=["data.max_rejected=0.5"]).data.checksum is not None
    same = load_spec(recipe="cifar10").data
    assert load_spec(recipe="cifar10", overrides={"data.source": same.source}).data == same
    upper = f"data.checksum={checksum.upper().replace('SHA', 'sha')}"
    assert load_spec(settings=[upper]).data.checksum == checksum
