"""Two-dimensional convolution that is safe on feature maps smaller than its stride.

If the stride is larger than the feature map, oneDNN's bfloat16 filter gradient (TensorFlow 2.21 on a CPU)
does not initialize the gradient of weights that see only padding. The gradient then contains arbitrary
memory, including NaN. The same convolution with the stride limited to the size of the map is exact.
"""

from __future__ import annotations

from typing import Any

import keras


class Conv2D(keras.layers.Conv2D):  # type: ignore[misc]
    """`keras.layers.Conv2D` whose stride is at most the size of its input, with the same values.

    A stride that is larger than both sides yields one output, at the same position and with the same padding.
    If only one side is smaller, the input is padded with zeros explicitly.
    """

    def convolution_op(self, inputs: Any, kernel: Any) -> Any:
        """Return the convolution of `inputs` [batch, height, width, channels] with `kernel`."""
        sides = [side for side in inputs.shape[1:3] if side is not None]
        # TensorFlow's CPU kernels support only equal strides for both axes.
        stride, padding = min(self.strides[0], max(sides, default=self.strides[0])), self.padding
        if padding == "same" and len(sides) == 2 and min(sides) < stride:
            margins = [_margins(side, self.kernel_size[0], stride) for side in sides]
            inputs, padding = keras.ops.pad(inputs, [(0, 0), *margins, (0, 0)]), "valid"
        return keras.ops.conv(
            inputs, kernel, strides=stride, padding=padding, dilation_rate=self.dilation_rate
        )


def _margins(side: int, kernel_side: int, stride: int) -> tuple[int, int]:
    """Return the number of zeros that `same` adds before and after a side."""
    outputs = -(-side // stride)
    total = max((outputs - 1) * stride + kernel_side - side, 0)
    return total // 2, total - total // 2
