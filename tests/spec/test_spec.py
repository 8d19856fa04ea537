"""The run spec: accepted values, rejected values and error messages."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel

from trainer.errors import EXIT_CODES, TrainerError, UsageError
from trainer.recipes import read_recipe, recipe_names, recipe_summary
from trainer.spec import (
    dump_spec,
    format_size,
    load_spec,
    parse_spec,
    read_spec,
    setting_digests,
    spec_changes,
    spec_digest,
)
from trainer.spec.schema import ModelSpec


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_valid_and_survives_a_round_trip(name: str, tmp_path: Path) -> None:
    spec = load_spec(recipe=name)
    path = tmp_path / "spec.yaml"
    path.write_text(dump_spec(spec))
    assert read_spec(path) == spec
    assert load_spec(path) == spec
    assert spec.recipe == name
    assert recipe_summary(name)
    assert not recipe_summary(name).startswith("#")
    assert read_recipe(name).startswith("#")


def test_recipe_cats_vs_dogs_matches_the_paper() -> None:
    spec = load_spec(recipe="cats-vs-dogs")
    assert spec.data.image_size == 150
    assert spec.data.source == "https://storage.googleapis.com/mledu-datasets/cats_and_dogs_filtered.zip"
    assert spec.model.model_dump() == {
        "family": "plain",
        "filters": (16, 32, 64, 1024),
        "pool_last": True,
        "dense_units": (),
        "dropout": 0.0,
        "binary_unit": True,
        "average_mirror": False,
    }
    assert (spec.optimizer.name, spec.optimizer.learning_rate) == ("rmsprop", 0.001)
    assert (spec.train.epochs, spec.train.global_batch_size, spec.train.precision) == (15, 20, "float32")
    assert spec.augment == load_spec().augment


def test_later_sources_override_earlier_ones(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text("recipe: cifar10\ntrain: {epochs: 5, global_batch_size: 64}\n")
    spec = load_spec(path, settings=["train.epochs=7"], overrides={"data.source": "photos", "output": None})
    assert spec.optimizer.name == "adam"
    assert spec.train.global_batch_size == 64
    assert spec.train.epochs == 7
    assert (spec.data.source, spec.output, spec.recipe) == ("photos", "runs", "cifar10")


def test_model_of_another_family_starts_from_its_own_defaults() -> None:
    spec = load_spec(recipe="cifar10", settings=["model={family: residual, blocks: [1, 1, 1]}"])
    assert spec.model.family == "residual"
    assert load_spec(settings=["model.filters=[8]", "model.blocks=[1]"]).model.family == "residual"


@pytest.mark.parametrize(
    "text",
    [
        '!!int ""',
        '!!float ""',
        "!!bool maybe",
        "!!timestamp foo",
        "[" * 3000,
        "0x" + "f" * 9000,
        "!!python/name:os",
    ],
)
def test_value_that_is_not_valid_yaml_is_refused_with_a_short_message(text: str) -> None:
    with pytest.raises(UsageError) as refused:
        load_spec(settings=[f"seed={text}"])
    assert len(str(refused.value)) < 400


def test_value_that_expands_to_gigabytes_is_refused_at_once(tmp_path: Path) -> None:
    # Ten lines, each a list of ten aliases of the line before.
    lines = ["a: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    (tmp_path / "bomb.yaml").write_text("\n".join(lines))
    with pytest.raises(UsageError, match="not a setting"):
        load_spec(tmp_path / "bomb.yaml")


def test_recipe_cannot_be_set_as_a_setting() -> None:
    with pytest.raises(UsageError, match="--recipe"):
        load_spec(settings=["recipe=cifar10"])


@pytest.mark.parametrize("order", [1, -1])
def test_settings_apply_in_any_order(order: int) -> None:
    settings = ["model.dropout=0.5", "model.family=residual", "model.stem_filters=8"][::order]
    for recipe in (None, "cifar10", "cats-vs-dogs-augmented"):
        model = load_spec(recipe=recipe, settings=settings).model
        assert (model.family, model.dropout) == ("residual", 0.5)
    plain = load_spec(settings=["model.filters=[8]", "model.family=plain"][::order]).model
    assert (plain.family, plain.filters) == ("plain", (8,))


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("augment={crop: {first_size: 96, size: 64}}", "first_size"),
        ("augment={crop: {first_size: 1000}}", "first_size"),
        ("optimizer={name: adam, momentum: 0.9}", "momentum"),
        ("optimizer={name: rmsprop, nesterov: true}", "nesterov"),
        ("optimizer={schedule: constant, final_fraction: 0.1}", "final_fraction"),
        ("optimizer={name: sgd, rest_rate: 0.1}", "rest_rate"),
        ("optimizer={name: adamw, rest: sgd}", "rest"),
        ("optimizer={name: muon, rest_momentum: 0.9}", "rest_momentum"),
        ("optimizer={name: adamw, unit_kernels: true}", "unit_kernels"),
        ("augment={crop: {}, translate_pixels: 2}", "translate_pixels"),
    ],
)
def test_setting_without_effect_is_refused(setting: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        load_spec(settings=[setting])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            ("model.weights=none", "train.finetune={}"),
            "Set train.finetune to null.*Received: model.weights none",
        ),
        (
            ("model.weights=none", "train.finetune.frozen_epochs=0"),
            "train.finetune requires pretrained weights",
        ),
        (("optimizer={name: muon, unit_kernels: true}",), "unit_kernels.*Received: unit_kernels true"),
    ],
)
def test_settings_incompatible_with_a_pretrained_backbone_are_refused(
    settings: tuple[str, ...], words: str
) -> None:
    pretrained = ("model={family: pretrained}", "data.image_size=32")
    with pytest.raises(UsageError, match=words) as raised:
        load_spec(settings=[*pretrained, *settings])
    assert "\n" not in str(raised.value)
    for fitting in (
        ("train.finetune={}",), ("model.weights=none",), ("model.weights=none", "train.finetune=null"),
        ("optimizer.name=muon",),
    ):  # fmt: skip
        load_spec(settings=[*pretrained, *fitting])


FAMILIES = get_args(get_args(ModelSpec)[0])


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_invalid_setting_of_any_model_family_is_reported_by_its_key(family: type[BaseModel]) -> None:
    name = family.model_fields["family"].default
    key = next(name for name in family.model_fields if name != "family")
    with pytest.raises(UsageError) as raised:
        load_spec(settings=[f"model.family={name}", f"model.{key}={{a: b}}"])
    assert f"model.{key}" in str(raised.value)
    assert f"model.{name}" not in str(raised.value)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("train.epoks=3", ["train.epoks", "train.epochs", "3"]),
        ("epochs=3", ["epochs", "train.epochs"]),
        ("train.epochs=yes", ["train.epochs", "integer", "True"]),
        ('train.epochs="3"', ["train.epochs", "integer", "'3'"]),
        ("train.epochs=0", ["train.epochs", "greater", "0"]),
        ("train.epochs", ["key.path=value", "'train.epochs'"]),
        ("train.epochs=[", ["not valid YAML", "'['"]),
        ("optimizer.learning_rate=.nan", ["optimizer.learning_rate", "finite"]),
        ("model.family=vgg", ["model.family", "'plain', 'residual', 'airbench'", "'vgg'"]),
        ("model.pool_last=true", ["model.pool_last", "another model.family", "Set model.family to plain"]),
        ("model.filters=[1, a]", ["model.filters.1", "integer", "'a'"]),
        ("train.steps_per_call=0", ["train.steps_per_call", "0"]),
        ("train.class_weights={cats: 0}", ["train.class_weights", "0"]),
        ("augment.crop.scale=[1, 0.5]", ["augment.crop.scale", "smallest"]),
        ("data=3", ["data is a section", "such as data.source", "3"]),
        ("data.checksum=abc", ["data.checksum", "32 hex digits", "'abc'"]),
        ("run_name=../x", ["run_name", "letters", "'../x'"]),
        ("seed=-1", ["seed", "-1"]),
        ("train.patience=3", ["early_stopping.patience_epochs"]),
        *(
            (f"{key}=0.1", ["Did you mean optimizer.learning_rate?"])
            for key in ("lr", "optimizer.lr", "train.lr", "optimizer.rate")
        ),
        ("train.wd=0.1", ["Did you mean optimizer.weight_decay?"]),
        ("train.optimizer=adam", ["Did you mean optimizer.name?"]),
        ("train.class_weights={airplane:3.0}", ["Write {airplane: 3.0}", "Received: {airplane:3.0}"]),
        ("model={family:plain}", ["{family: plain}", "Received: {family:plain}"]),
        ("train.class_weights=foo", ["'none' or 'balanced' or a valid dictionary", "'foo'"]),
        ("train.xla=maybe", ["'auto'", "boolean", "'maybe'"]),
        ("run_name=latest", ["run_name", "pointer", "latest"]),
        (
            "data={resize: stretch, crop_fraction: 0.875}",
            ["data.crop_fraction", "data.resize crop", ": 0.875"],
        ),
        ("data={resize: crop, crop_fraction: 0}", ["data.crop_fraction", "0.1", ": 0"]),
        ("data.image_size=[0, 5]", ["data.image_size", "[height, width], each from 8 to 2048", "[0, 5]"]),
        ("data.image_size=[32, 32, 3]", ["data.image_size", "one number or [height, width]"]),
        ("data.image_size=4096", ["data.image_size", "from 8 to 2048", ": 4096"]),
        ("data.image_size=true", ["data.image_size", ": True"]),
        ("data.channels=2", ["data.channels", "1, 3 or 4", ": 2"]),
        ("data.interpolation=lanczos", ["data.interpolation", "'bicubic'", "'lanczos'"]),
        ("model={family: plain, filters: [8, 8, 8, 8, 8, 8]}", ["data.image_size", "too small"]),
        ("model={family: airbench, filters: [8, 8, 8, 8, 8, 8, 8]}", ["129 pixels", "model.filters"]),
    ],
)
def test_invalid_setting_is_reported_with_key_and_received_value(setting: str, words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        load_spec(settings=[setting])
    message = str(caught.value)
    for word in words:
        assert word in message
    assert len(message.splitlines()) == 1


def test_muon_has_momentum_by_default() -> None:
    muon = load_spec(settings=["optimizer.name=muon"]).optimizer
    assert (muon.momentum, muon.nesterov) == (0.95, True)
    other = load_spec(settings=["optimizer={name: muon, momentum: 0.6, nesterov: false}"]).optimizer
    assert (other.momentum, other.nesterov) == (0.6, False)


def test_xla_with_rotation_is_refused() -> None:
    with pytest.raises(UsageError, match="rotate_degrees"):
        load_spec(settings=["train.xla=true", "augment.rotate_degrees=5.0"])
    load_spec(settings=["train.xla=auto", "augment.rotate_degrees=5.0"])


def test_smallest_image_size_of_a_plain_network_is_accepted() -> None:
    # 10 - 2 = 8, pooled to 4; 4 - 2 = 2, pooled to 1.
    settings = ["model={family: plain, filters: [8, 8]}"]
    assert load_spec(settings=[*settings, "data.image_size=10"]).data.image_size == 10
    with pytest.raises(UsageError, match="too small"):
        load_spec(settings=[*settings, "data.image_size=9"])


def test_image_size_is_one_number_or_height_and_width() -> None:
    square, wide = (load_spec(settings=[f"data.image_size={size}"]) for size in ("[64, 64]", "[64, 96]"))
    assert square == load_spec(settings=["data.image_size=64"])
    assert wide.data.pixel_format.shape == (64, 96, 3)
    assert wide.data.image_size == (64, 96)
    assert parse_spec(dump_spec(wide), "here") == wide
    assert format_size(64) == "64 px"
    assert format_size(wide.data.image_size) == "64 x 96 px"
    plain = "model={family: plain, filters: [8, 8]}"
    with pytest.raises(UsageError, match="too small"):
        load_spec(settings=[plain, "data.image_size=[64, 9]"])
    with pytest.raises(UsageError, match="residual"):
        load_spec(settings=[plain, "data.image_size=[64, 96]", "augment.crop={size: 96}"])
    assert load_spec(settings=[plain, "data.image_size=[64, 96]", "augment.crop={size: 64}"]).augment.crop


def test_crops_of_another_size_require_a_network_that_accepts_any_size() -> None:
    settings = ["model={family: plain, filters: [8]}", "augment.crop={size: 64}"]
    with pytest.raises(UsageError, match="residual"):
        load_spec(settings=settings)
    assert load_spec(settings=[*settings, "data.image_size=64"]).augment.crop is not None
    assert load_spec(settings=["augment.crop={size: 64}"]).augment.crop is not None


def test_exponent_without_a_dot_is_a_number() -> None:
    assert load_spec(settings=["optimizer.learning_rate=1e-4"]).optimizer.learning_rate == 1e-4


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train: {epochs: 1, epochs: 2}", "duplicate key"),
        ("- a\n- b\n", "key: value"),
        ("train: [", "line 1"),
        ("train: {epoks: 3}", "Did you mean train.epochs?"),
        ("recipe: cats-vs-dog", "Did you mean cats-vs-dogs?"),
        ("3: 4", "not a string; put quotes around it"),
        ("train.epochs: 3", "two lines, `train:` and below it"),
        ("train: {<<: {epochs: 3}}", "are not supported"),
        ("data: photos", "data is a section"),
        ("\x00", "not valid YAML"),
    ],
)
def test_invalid_spec_file_is_refused_with_a_reason(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=words.replace("?", r"\?")) as raised:
        load_spec(path)
    assert "Received: " in str(raised.value)


def test_section_replaced_by_an_option_must_be_valid(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text("data: photos\ntrain: 3\n")
    with pytest.raises(UsageError, match="data is a section"):
        load_spec(path, settings=["train.epochs=2"], overrides={"data.source": "pictures"})


@pytest.mark.parametrize("name", ["1234e56", "123", "1.5", "true", "null", "2026-01-01"])
def test_run_name_that_looks_like_a_number_stays_a_string(name: str, tmp_path: Path) -> None:
    spec = load_spec(overrides={"run_name": name})
    path = tmp_path / "spec.yaml"
    path.write_text(dump_spec(spec))
    assert read_spec(path).run_name == name


def test_unreadable_spec_file_is_refused(tmp_path: Path) -> None:
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "missing.yaml", tmp_path, binary):
        with pytest.raises(UsageError, match="cannot be read"):
            load_spec(path)


def test_spec_digest_depends_on_settings_that_affect_the_result() -> None:
    spec = load_spec(recipe="demo")
    assert spec_digest(spec) == spec_digest(spec.model_copy(update={"output": "x", "run_name": "y"}))
    other = load_spec(recipe="demo", settings=["train.epochs=3"])
    assert spec_digest(spec) != spec_digest(other)
    assert spec_changes(spec, other) == ["train.epochs: 15 -> 3"]
    elsewhere = load_spec(recipe="demo", settings=["data.cache_mib=7", "train.log_interval_seconds=1.0"])
    assert spec_changes(spec, elsewhere) == []
    assert spec_changes(spec, spec) == []


def test_setting_digests_differ_in_the_settings_that_can_change_the_result() -> None:
    spec = load_spec(recipe="demo", overrides={"data.source": "https://host/a.zip?sig=1"})
    digests = setting_digests(spec)
    changes = {
        "data.source": "https://host/a.zip?sig=2",
        "output": "x",
        "train.epochs": 3,
        "data.cache_mib": 7,
    }
    other = setting_digests(load_spec(recipe="demo", overrides=changes))
    assert {key for key in {*digests, *other} if digests.get(key) != other.get(key)} == {"train.epochs"}
    assert {"seed", "data.source", "model.family", "optimizer.name"} <= set(digests)
    assert "host" not in str(digests)


def test_every_exception_has_an_exit_code_in_the_table() -> None:
    codes = {error.exit_code for error in TrainerError.__subclasses__()} | {TrainerError.exit_code}
    assert codes | {0, 137} == set(EXIT_CODES)


@pytest.mark.parametrize(
    ("key", "suggestion"),
    [
        ("model.pretrained", ""),
        ("nonsense", ""),
        ("data.zzz", ""),
        ("optimizer.colour", ""),
        ("model.dropuot", "model.dropout"),
        ("trian.epochs", "train.epochs"),
        ("train.dropout", "model.dropout"),
        ("train.batch_size", "train.global_batch_size"),
        ("data.validation_fractoin", "data.validation_fraction"),
        ("augment.crop.sclae", "augment.crop.scale"),
    ],
)
def test_unknown_key_suggests_a_similar_key_or_none(key: str, suggestion: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_spec(settings=[f"{key}=1"])
    section = key.rpartition(".")[0]
    listing = f"Run `{f'trainer spec {section}'.rstrip()}` to list the settings."
    assert caught.value.problem == f"{key} is not a setting."
    assert caught.value.remedy == (f"Did you mean {suggestion}?" if suggestion else listing)
    assert caught.value.received == "1"


def test_several_problems_of_a_spec_are_listed_one_per_line() -> None:
    with pytest.raises(UsageError) as caught:
        parse_spec("train: {epochs: 0, epoks: 3}\nseed: -1\n", "here")
    assert len(str(caught.value).splitlines()) == 3
    with pytest.raises(UsageError) as caught:
        load_spec(settings=["train.epochs=0"])
    assert caught.value.problem == "train.epochs must be greater than or equal to 1."
    assert caught.value.received == "0"
