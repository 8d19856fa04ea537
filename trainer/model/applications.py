"""keras.applications networks without their top layer, rebuilt from the layers of this package.

The networks map pixels [batch, height, width, channels] to pooled features [batch, features], float32. Keras
builds each network, and every layer is then copied. The copy computes batch statistics over all replicas,
takes its initial weights from the run's seed, and computes in the run's precision.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import layers

from trainer.model.dropout import RowDropout
from trainer.model.layers import FusedBatchNormalization, Kernels

_BUILDERS = {
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
# ConvNeXt's last normalization, which Keras names by a counter if it builds the network without the top.
_LAST_NORM = "head_layernorm"


def application_features(
    name: str, pixels: Any, prepared: Any, policy: keras.DTypePolicy, kernels: Kernels
) -> Any:
    """Return the pooled features, float32 [batch, features], of the input tensor `pixels`.

    prepared: `pixels` after the preprocessing of the network `name`.
    """
    reference = _build_reference(name)
    copier = _Copier(reference, policy, kernels)

    def call(layer: Any, *inputs: Any, mask: Any = None, **options: Any) -> Any:
        # Images have no mask, but some layers of Keras's networks were called with one.
        return layer(*(prepared if tensor is pixels else tensor for tensor in inputs), **options)

    return keras.models.clone_model(
        reference, input_tensors=pixels, clone_function=copier.copy, call_function=call, recursive=True
    ).output


def _build_reference(name: str) -> keras.Model:
    build = getattr(keras.applications, _BUILDERS[name])
    options = {} if name == "resnet50v2" else {"include_preprocessing": False}
    return build(include_top=False, pooling="avg", weights=None, input_shape=(None, None, 3), **options)


class _Copier:
    """Copies the layers of one network."""

    def __init__(self, network: keras.Model, policy: keras.DTypePolicy, kernels: Kernels) -> None:
        self.network, self.policy, self.kernels = network, policy, kernels
        self.last = network.layers[-2:]

    def copy(self, layer: Any) -> Any:
        """Return this package's equivalent of `layer`."""
        if not isinstance(layer, layers.Layer) or isinstance(layer, layers.InputLayer):
            return layer
        if isinstance(layer, layers.BatchNormalization):
            return FusedBatchNormalization(_MOMENTUM, layer.epsilon, dtype=self.policy, name=layer.name)
        if isinstance(layer, layers.Dropout):
            is_whole_rows = layer.noise_shape is not None
            return RowDropout(
                layer.rate, self.kernels.seed, is_whole_rows, dtype=self.policy, name=layer.name
            )
        config = {**layer.get_config(), "dtype": self.policy}
        for key, value in config.items():
            if key.endswith("_initializer"):
                config[key] = self.kernels.seeded(value)
        return layer.__class__.from_config({**config, **self._config_changes(layer)})

    def _config_changes(self, layer: layers.Layer) -> dict[str, Any]:
        if layer in self.last and isinstance(layer, layers.GlobalAveragePooling2D):
            return {"dtype": "float32"}
        if layer in self.last and isinstance(layer, layers.LayerNormalization):
            return {"dtype": "float32", "name": f"{self.network.name}_{_LAST_NORM}"}
        if self.network.name.startswith("MobileNetV3"):
            return _same_padding(layer)
        return {}


def _same_padding(layer: layers.Layer) -> dict[str, Any]:
    """Return the config changes that make a strided convolution of MobileNetV3 pad its input itself.

    Keras pads in a separate layer, by the size of the input, and assumes an even size if it is unknown.
    """
    if isinstance(layer, layers.ZeroPadding2D):
        return {"padding": 0}
    return {"padding": "same"} if isinstance(layer, layers.DepthwiseConv2D) else {}
