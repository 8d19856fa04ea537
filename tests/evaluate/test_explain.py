"""Occlusion maps: they mark what decides the class, beat random maps, and work with every family."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from trainer.evaluate.explain import (
    Explanation,
    build_explainer,
    explain,
    measure_map,
    occlusion_map,
    random_map,
)
from trainer.evaluate.predict import explain_file
from trainer.export import export_model, load_model
from trainer.model import build_inference_model
from trainer.report.heat import draw_overlay, encode_pair
from trainer.spec import load_spec
from trainer.training.objective import MULTI, SINGLE

SIDE = 48
Floats = NDArray[np.float32]


def bright_corner(images: Floats) -> NDArray[np.float64]:
    """Return probabilities of a model that looks only for contrast in the upper left quarter."""
    corner = images[:, : SIDE // 2, : SIDE // 2].astype(np.float64)
    logits = corner.std(axis=(1, 2, 3)) / 20.0 - 2.0
    share = 1.0 / (1.0 + np.exp(-logits))
    return np.stack([1.0 - share, share], axis=1)


def busy(seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)


def share_of_corner(heat: Floats) -> float:
    return float(heat[: SIDE // 2, : SIDE // 2].sum() / heat.sum())


def test_map_marks_the_corner_that_decides() -> None:
    explanation = explain(bright_corner, busy(), ("plain", "busy"), is_multi=False)
    assert explanation.label == "busy"
    assert share_of_corner(explanation.heat) > 0.75
    assert explanation.heat.max() == 1.0
    assert explanation.heat.min() >= 0.0
    again = explain(bright_corner, busy(), ("plain", "busy"), is_multi=False)
    np.testing.assert_array_equal(again.heat, explanation.heat)


def test_map_is_not_lost_where_the_probability_is_rounded_to_one() -> None:
    def certain(images: Floats) -> Floats:
        odds = 30.0 * np.log(bright_corner(images)[:, 1] / bright_corner(images)[:, 0])
        other = np.exp(-odds)
        return np.stack([other / (1 + other), 1 / (1 + other)], axis=1).astype(np.float32)

    assert certain(busy()[None].astype(np.float32))[0, 1] == 1.0
    assert share_of_corner(occlusion_map(certain, busy(), 1)) > 0.6


def test_map_of_a_prediction_that_nothing_supports_is_zero() -> None:
    heat = occlusion_map(lambda images: np.full((len(images), 3), 1 / 3), busy(), 0)
    assert not heat.any()
    assert not occlusion_map(bright_corner, np.full((SIDE, SIDE, 3), 9, np.uint8), 1).any()


def test_deletion_and_insertion_prefer_the_map_to_random_maps() -> None:
    for seed in range(3):
        image = busy(seed)
        deleted, inserted = measure_map(bright_corner, image, 1, occlusion_map(bright_corner, image, 1))
        random = [
            measure_map(bright_corner, image, 1, random_map(SIDE, SIDE, seed=number)) for number in range(5)
        ]
        assert deleted < min(area for area, _ in random) - 0.05
        assert inserted > max(area for _, area in random) + 0.05


FAMILIES = {
    "plain": "{family: plain, filters: [4, 4]}",
    "residual": "{family: residual, stem_filters: 4, filters: [8], blocks: [1]}",
    "mirrored": "{family: residual, stem_filters: 4, filters: [8], blocks: [1], average_mirror: true}",
    "airbench": "{family: airbench, filters: [4, 8]}",
    "pretrained": "{family: pretrained, weights: none}",
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_explained_as_its_exported_model_is(family: str, tmp_path: Path) -> None:
    sides, names = (40, 32), ("a", "b", "c")
    spec = load_spec(settings=[f"data.image_size={list(sides)}", f"model={FAMILIES[family]}"])
    model = build_inference_model(spec.model, len(names), sides)
    pixels = busy()[: sides[0], : sides[1]]
    trained = build_explainer(model, SINGLE, names, is_multi=False)(pixels)
    assert trained.heat.shape == sides
    assert np.isfinite(trained.heat).all()
    export_model(tmp_path / "model", model, names, spec.data)
    loaded = load_model(tmp_path / "model")
    served = explain(loaded.classify_pixels, pixels, names, is_multi=False)
    assert served.label == trained.label
    # Without training, the drops are almost 0, so that rounding shows in the normalised map.
    assert np.abs(served.heat - trained.heat).mean() < 0.1


def test_several_labels_are_explained_by_the_most_probable_one(tmp_path: Path) -> None:
    spec = load_spec(settings=["data={labels: multi, image_size: 16}", "model={family: plain, filters: [4]}"])
    model = build_inference_model(spec.model, 3, (16, 16))
    pixels = busy()[:16, :16]
    explanation = build_explainer(model, MULTI, ("a", "b", "c"), is_multi=True)(pixels)
    expected = MULTI.probabilities(model(pixels[None].astype(np.float32))).numpy()[0]
    assert explanation.label == "abc"[int(expected.argmax())]
    assert explanation.probability == pytest.approx(float(expected.max()), abs=1e-6)


def test_unreadable_file_has_a_reason_instead_of_a_map(tmp_path: Path) -> None:
    spec = load_spec(settings=["data.image_size=16", "model={family: plain, filters: [4]}"])
    export_model(tmp_path / "model", build_inference_model(spec.model, 2, (16, 16)), ("a", "b"), spec.data)
    (tmp_path / "text.jpg").write_text("no image")
    model = load_model(tmp_path / "model")
    assert "not an image" in str(explain_file(model, tmp_path / "text.jpg"))
    assert "not a regular file" in str(explain_file(model, tmp_path / "missing.jpg"))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_overlay_is_dark_without_influence_and_yellow_at_the_most_important_pixel(channels: int) -> None:
    heat = np.zeros((20, 30), np.float32)
    heat[5, 7] = 1.0
    pixels = np.full((20, 30, channels), 128, np.uint8)
    overlay = draw_overlay(Explanation(pixels, "cats", 0.9, heat))
    red, green, blue = overlay[5, 7].astype(int)
    assert min(red, green) > blue + 60
    assert int(overlay[0, 0].sum()) < int(overlay[5, 7].sum())
    assert encode_pair(Explanation(pixels, "cats", 0.9, heat), "a.jpg").startswith(b"\x89PNG")
