"""Two-dimensional convolution that is safe on feature maps smaller than its stride.

oneDNN's bfloat16 filter gradient (TensorFlow 2.21 on a CPU) leaves the weights that see only padding
uninitialised when the stride is larger than the feature map: whatever the memory held before, NaN
included, becomes a gradient. The same convolution with the stride cut to the map's size is exact.
"""

from __future__ import annotations

from typing import Any

import keras


class Conv2D(keras.layers.Conv2D):  # type: ignore[misc]
    """`keras.layers.Conv2D` for square features whose stride is at most the size of its input.

    A stride that is larger yields one output, at the same position and with the same padding, so
    the values are the same.
    """

    def convolution_op(self, inputs: Any, kernel: Any) -> Any:
        """Return the convolution of `inputs` [batch, height, width, channels] with `kernel`."""
        sides = [side for side in inputs.shape[1:3] if side is not None]
        # One stride for both axes: TensorFlow's CPU kernels have no other.
        stride = min(self.strides[0], max(sides, default=self.strides[0]))
        return keras.ops.conv(
            inputs, kernel, strides=stride, padding=self.padding, dilation_rate=self.dilation_rate
        )
