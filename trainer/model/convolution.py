"""Two-dimensional convolution that is safe on feature maps smaller than its stride.

oneDNN's bfloat16 filter gradient (TensorFlow 2.21 on a CPU) leaves the weights that see only padding
uninitialised when the stride is larger than the feature map: whatever the memory held before, NaN
included, becomes a gradient. The same convolution with the stride cut to the map's size is exact.
"""

from __future__ import annotations

from typing import Any

import keras


class Conv2D(keras.layers.Conv2D):  # type: ignore[misc]
    """`keras.layers.Conv2D` whose stride is at most the size of its input, with the same values.

    A stride that is larger than both sides yields one output, at the same position and with the same
    padding. Where only one side is smaller, the padding becomes zeros of the input.
    """

    def convolution_op(self, inputs: Any, kernel: Any) -> Any:
        """Return the convolution of `inputs` [batch, height, width, channels] with `kernel`."""
        sides = [side for side in inputs.shape[1:3] if side is not None]
        # One stride for both axes: TensorFlow's CPU kernels have no other.
        stride, padding = min(self.strides[0], max(sides, default=self.strides[0])), self.padding
        if padding == "same" and len(sides) == 2 and min(sides) < stride:
            margins = [_margins(side, self.kernel_size[0], stride) for side in sides]
            inputs, padding = keras.ops.pad(inputs, [(0, 0), *margins, (0, 0)]), "valid"
        return keras.ops.conv(
            inputs, kernel, strides=stride, padding=padding, dilation_rate=self.dilation_rate
        )


def _margins(side: int, kernel_side: int, stride: int) -> tuple[int, int]:
    """Return how many zeros `same` puts before and after a side."""
    outputs = -(-side // stride)
    total = max((outputs - 1) * stride + kernel_side - side, 0)
    return total // 2, total - total // 2
