"""Descriptions of the settings: type, default and meaning of each key."""

from __future__ import annotations

import pytest

from trainer.errors import UsageError
from trainer.spec.describe import Setting, describe_sections, describe_setting
from trainer.spec.problems import known_keys


def test_setting_is_described_with_type_default_and_meaning() -> None:
    assert describe_setting("train.epochs") == [
        ("train.epochs", "integer (at least 1)", "20", "Passes over the training images.")
    ]
    [precision] = describe_setting("train.precision")
    assert precision[:3] == ("train.precision", "auto, float32, bfloat16", "auto")
    [norm] = describe_setting("optimizer.clip_norm")
    assert norm[1:3] == ("number (above 0)", "null")


def test_section_is_described_by_all_settings_below_it() -> None:
    keys = [setting.key for setting in describe_setting("train")]
    assert {"train.epochs", "train.finetune.probe", "train.checkpoint.every_minutes"} <= set(keys)
    assert all(key.startswith("train.") for key in keys)
    assert [setting.key for setting in describe_setting("augment.crop")] == [
        f"augment.crop.{name}" for name in ("scale", "ratio", "size", "first_size", "whole_epochs")
    ]


def test_empty_key_selects_all_settings() -> None:
    sections = {key.rpartition(".")[0] for key in known_keys()}
    assert {setting.key for setting in describe_setting()} == set(known_keys()) - sections
    assert all(setting.type and setting.default and setting.meaning for setting in describe_setting())


def test_setting_of_several_families_is_described_once_per_description() -> None:
    described = describe_setting("model.dropout")
    assert [setting.default for setting in described] == ["0.0", "0.2"]
    assert described[0].meaning.startswith("With model.family plain, airbench or pretrained: dropout rate")
    assert described[1].meaning.startswith("With model.family residual: dropout rate")
    assert describe_setting("model.family") == [
        Setting("model.family", "plain, residual, airbench, pretrained", "residual", "Network family.")
    ]


def test_single_class_weight_is_described_by_its_setting() -> None:
    assert describe_setting("train.class_weights.cats") == describe_setting("train.class_weights")


def test_unknown_key_is_refused_with_a_suggestion() -> None:
    with pytest.raises(UsageError, match=r"train.epoks is not a setting\. Did you mean train.epochs\?"):
        describe_setting("train.epoks")


def test_descriptions_are_plain_text_and_sections_are_markdown() -> None:
    assert not any("`" in setting.type + setting.default for setting in describe_setting())
    [run] = [section for section in describe_sections() if section.title == "Run"]
    assert run.settings[0].default == "`null`"
    assert [section.family for section in describe_sections() if section.family] == [
        "plain", "residual", "airbench", "pretrained",
    ]  # fmt: skip
