"""The networks of keras.applications without their last layers, out of this package's layers.

In: pixels [batch, height, width, channels]. Out: pooled features [batch, features], float32.
Keras builds each network, which is then copied layer by layer: the batch statistics of the copy are those of
all replicas, its initial weights follow from the run's seed, and its arithmetic has the run's precision.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import layers

from trainer.model.kernels import Kernels
from trainer.model.masks import RowDropout
from trainer.model.normalization import FusedBatchNormalization

_MAKERS = {
    "efficientnetv2-b0": "EfficientNetV2B0",
    "efficientnetv2-b1": "EfficientNetV2B1",
    "efficientnetv2-b2": "EfficientNetV2B2",
    "efficientnetv2-b3": "EfficientNetV2B3",
    "efficientnetv2-s": "EfficientNetV2S",
    "efficientnetv2-m": "EfficientNetV2M",
    "efficientnetv2-l": "EfficientNetV2L",
    "mobilenetv3-small": "MobileNetV3Small",
    "mobilenetv3-large": "MobileNetV3Large",
    "resnet50v2": "ResNet50V2",
    "convnext-tiny": "ConvNeXtTiny",
    "convnext-small": "ConvNeXtSmall",
    "convnext-base": "ConvNeXtBase",
}
_MOMENTUM = 0.9
# ConvNeXt's last normalisation, which has a number for a name where Keras builds it without the last layer.
_LAST_NORM = "head_layernorm"


def application_features(
    name: str, pixels: Any, prepared: Any, policy: keras.DTypePolicy, kernels: Kernels
) -> Any:
    """Return the pooled features, float32 [batch, features], of `pixels`, the input of a model.

    `prepared` is the same, preprocessed for the network `name`.
    """
    reference = _reference(name)
    copier = _Copier(reference, policy, kernels)

    def call(layer: Any, *inputs: Any, mask: Any = None, **options: Any) -> Any:
        # Pictures have no mask, which some of Keras's layers were given.
        return layer(*(prepared if each is pixels else each for each in inputs), **options)

    return keras.models.clone_model(
        reference, input_tensors=pixels, clone_function=copier.copy, call_function=call, recursive=True
    ).output


def _reference(name: str) -> keras.Model:
    make = getattr(keras.applications, _MAKERS[name])
    options = {} if name == "resnet50v2" else {"include_preprocessing": False}
    return make(include_top=False, pooling="avg", weights=None, input_shape=(None, None, 3), **options)


class _Copier:
    """Copies the layers of one network."""

    def __init__(self, network: keras.Model, policy: keras.DTypePolicy, kernels: Kernels) -> None:
        self.network, self.policy, self.kernels = network, policy, kernels
        self.last = network.layers[-2:]

    def copy(self, layer: Any) -> Any:
        """Return our layer for `layer`."""
        if not isinstance(layer, layers.Layer) or isinstance(layer, layers.InputLayer):
            return layer
        if isinstance(layer, layers.BatchNormalization):
            return FusedBatchNormalization(_MOMENTUM, layer.epsilon, dtype=self.policy, name=layer.name)
        if isinstance(layer, layers.Dropout):
            is_of_rows = layer.noise_shape is not None
            return RowDropout(layer.rate, self.kernels.seed, is_of_rows, dtype=self.policy, name=layer.name)
        config = {**layer.get_config(), "dtype": self.policy}
        for key, value in config.items():
            if key.endswith("_initializer"):
                config[key] = self.kernels.seeded(value)
        return layer.__class__.from_config({**config, **self._changes(layer)})

    def _changes(self, layer: layers.Layer) -> dict[str, Any]:
        if layer in self.last and isinstance(layer, layers.GlobalAveragePooling2D):
            return {"dtype": "float32"}
        if layer in self.last and isinstance(layer, layers.LayerNormalization):
            return {"dtype": "float32", "name": f"{self.network.name}_{_LAST_NORM}"}
        if self.network.name.startswith("MobileNetV3"):
            return _same_padding(layer)
        return {}


def _same_padding(layer: layers.Layer) -> dict[str, Any]:
    """Return what makes a strided convolution of MobileNetV3 pad by itself.

    Keras pads in a layer of its own, by the size of the input; where that is open it takes it to be even.
    """
    if isinstance(layer, layers.ZeroPadding2D):
        return {"padding": 0}
    return {"padding": "same"} if isinstance(layer, layers.DepthwiseConv2D) else {}
