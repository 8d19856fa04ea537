"""Learning-rate schedule and optimizers, with Muon.

The learning rate is a pure function of the optimizer's own step, so a restored optimizer continues exactly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from trainer.compat import apply_without_all_reduce, index_of_variable
from trainer.model.layers import OUTPUT_LAYERS
from trainer.spec import OptimizerSpec

_A, _B, _C = 3.4445, -4.7750, 2.0315
"""Coefficients of the quintic Newton-Schulz iteration: steepest at zero with singular values kept near 1."""
_ITERATIONS = 5
_UPDATE_RMS = 0.2
"""Usual root mean square of AdamW's updates, as a share of the learning rate."""
_BETA_1, _BETA_2, _EPSILON = 0.9, 0.999, 1e-7


class Muon(keras.optimizers.Optimizer):  # type: ignore[misc]
    """Muon for hidden kernels with two or more dimensions, AdamW or SGD for all other weights.

    A convolution kernel [height, width, in, out] is the matrix [height * width * in, out]. The other weights
    include the kernel of the output layer, and kernels whose matrix has one row or column, such as depthwise
    ones.
    """

    def __init__(
        self,
        learning_rate: Any,
        momentum: float = 0.95,
        nesterov: bool = True,
        decay: float = 0.0,
        rest_ratio: float = 1.0,
        rest_momentum: float | None = None,
        unit_kernels: bool = False,
        compute_dtype: str = "float32",
    ) -> None:
        """Create an optimizer; `build` selects the weights with orthogonalized updates.

        The learning rate of the other weights is `rest_ratio` times Muon's. They are trained by SGD with
        momentum `rest_momentum`, or by AdamW if it is None. `decay` is decoupled and applies to kernels only,
        except that SGD decays all other weights. With `unit_kernels` a kernel is scaled to the norm sqrt(out)
        before each step, and learning_rate is a share of it. `compute_dtype` is the dtype of the matrix
        products of the iteration.
        """
        super().__init__(learning_rate=learning_rate)
        self.momentum, self.nesterov, self.decay = momentum, nesterov, decay
        self.rest_ratio, self.rest_momentum = rest_ratio, rest_momentum
        self.unit_kernels, self.compute_dtype = unit_kernels, compute_dtype

    def build(self, variables: list[keras.Variable]) -> None:
        """Create the moments of `variables`."""
        if self.built:
            return
        super().build(variables)
        self.hidden = [_is_hidden(variable) for variable in variables]
        self.first_moments, self.second_moments = [], []
        for variable, is_hidden in zip(variables, self.hidden, strict=True):
            self.first_moments.append(self.add_variable_from_reference(variable, name="momentum"))
            has_second = not is_hidden and self.rest_momentum is None
            self.second_moments.append(
                self.add_variable_from_reference(variable, name="velocity") if has_second else None
            )

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        """Update `variable` by its gradient, which is summed over all replicas."""
        index = index_of_variable(self, variable)
        first, second = self.first_moments[index], self.second_moments[index]
        rate = tf.cast(learning_rate, tf.float32) * (1.0 if self.hidden[index] else self.rest_ratio)
        has_decay = len(variable.shape) > 1 or self.rest_momentum is not None
        if self.decay and has_decay:
            self.assign(variable, variable * (1.0 - rate * self.decay))
        if self.hidden[index]:
            self._orthogonal_step(gradient, variable, rate, first)
        elif self.rest_momentum is not None:
            self.assign_sub(variable, rate * self._direction(gradient, first, self.rest_momentum))
        else:
            self._adam_step(gradient, variable, rate, first, second)

    def _orthogonal_step(self, gradient: Any, variable: Any, rate: tf.Tensor, moment: Any) -> None:
        direction = self._direction(gradient, moment, self.momentum)
        rows, columns = _matrix_shape(variable.shape)
        matrix = orthogonalize(tf.reshape(direction, [rows, columns]), self.compute_dtype)
        update = tf.reshape(matrix, variable.shape)
        if self.unit_kernels:
            values = tf.convert_to_tensor(variable)
            norm = tf.maximum(tf.norm(values), 1e-12)
            self.assign(variable, values * (math.sqrt(columns) / norm) - rate * update)
        else:
            self.assign_sub(variable, rate * (_UPDATE_RMS * math.sqrt(max(rows, columns))) * update)

    def _direction(self, gradient: Any, moment: Any, momentum: float) -> Any:
        """Return the gradient with momentum, which is stored in `moment`."""
        average = momentum * moment + gradient
        self.assign(moment, average)
        return gradient + momentum * average if self.nesterov else average

    def _adam_step(self, gradient: Any, variable: Any, rate: tf.Tensor, first: Any, second: Any) -> None:
        step = tf.cast(self.iterations + 1, tf.float32)
        mean = _BETA_1 * first + (1.0 - _BETA_1) * gradient
        square = _BETA_2 * second + (1.0 - _BETA_2) * tf.square(gradient)
        self.assign(first, mean)
        self.assign(second, square)
        mean, square = mean / (1.0 - _BETA_1**step), square / (1.0 - _BETA_2**step)
        self.assign_sub(variable, rate * mean / (tf.sqrt(square) + _EPSILON))

    def get_config(self) -> dict[str, Any]:
        """Return the constructor arguments, in addition to those of Keras."""
        own = ("momentum", "nesterov", "decay", "rest_ratio", "rest_momentum", "unit_kernels")
        values = {name: getattr(self, name) for name in (*own, "compute_dtype")}
        return {**super().get_config(), **values}


def orthogonalize(matrix: tf.Tensor, compute_dtype: str = "float32") -> tf.Tensor:
    """Return approximately the nearest matrix with orthogonal rows or columns, float32 of the same shape.

    For matrix = U S V', the result is close to U V': singular values far from 0 are mapped to 0.7 to 1.2.
    """
    rows, columns = matrix.shape
    x = tf.cast(matrix / (tf.norm(matrix) + 1e-7), compute_dtype)
    x = x if rows <= columns else tf.transpose(x)
    for _ in range(_ITERATIONS):
        gram = tf.matmul(x, x, transpose_b=True)
        x = _A * x + tf.matmul(_B * gram + _C * tf.matmul(gram, gram), x)
    return tf.cast(x if rows <= columns else tf.transpose(x), tf.float32)


def _is_hidden(variable: Any) -> bool:
    """Return whether `variable` is a matrix that does not belong to the output layer."""
    is_matrix = len(variable.shape) > 1 and min(_matrix_shape(variable.shape)) > 1
    return is_matrix and OUTPUT_LAYERS.isdisjoint(variable.path.split("/"))


def _matrix_shape(shape: Any) -> tuple[int, int]:
    return math.prod(shape[:-1]), int(shape[-1])


class Schedule(keras.optimizers.schedules.LearningRateSchedule):  # type: ignore[misc]
    """Linear warm-up, then constant, linear or cosine decay (Loshchilov and Hutter 2016), times `scale`.

    `scale` is a variable, initially 1, which recovery from divergence halves; `factor` is a constant.
    """

    def __init__(
        self,
        spec: OptimizerSpec,
        steps_per_epoch: int,
        total_steps: int,
        scale: tf.Variable | None = None,
        factor: float = 1.0,
    ) -> None:
        super().__init__()
        self.spec, self.peak = spec, factor * spec.learning_rate
        self.warmup_steps = round(spec.warmup_epochs * steps_per_epoch)
        self.decay_steps = max(1, total_steps - self.warmup_steps)
        self.scale = build_scale() if scale is None else scale

    def __call__(self, step: Any) -> tf.Tensor:
        """Return the learning rate of `step`, counted from 0, as a float32 scalar."""
        step = tf.cast(step, tf.float32)
        warmup = tf.minimum(1.0, (step + 1.0) / (self.warmup_steps + 1.0))
        return self.peak * self.scale * warmup * self._decay(step)

    def _decay(self, step: tf.Tensor) -> tf.Tensor:
        if self.spec.schedule == "constant":
            return tf.constant(1.0)
        progress = tf.clip_by_value((step - self.warmup_steps) / self.decay_steps, 0.0, 1.0)
        is_linear = self.spec.schedule == "linear"
        left = 1.0 - progress if is_linear else 0.5 * (1.0 + tf.cos(math.pi * progress))
        return self.spec.final_fraction + (1.0 - self.spec.final_fraction) * left

    def get_config(self) -> dict[str, Any]:
        """Return the spec's values, as Keras requires."""
        return self.spec.model_dump()


def build_scale() -> tf.Variable:
    """Return the variable that multiplies all learning rates, initially 1."""
    return tf.Variable(1.0, trainable=False, dtype=tf.float32, name="learning_rate_scale")


def build_optimizer(
    spec: OptimizerSpec,
    weights: Sequence[keras.Variable],
    steps_per_epoch: int,
    total_steps: int,
    scale: tf.Variable | None = None,
    factor: float = 1.0,
    precision: str = "float32",
) -> tuple[keras.Optimizer, Schedule]:
    """Return the optimizer, built for `weights`, and its schedule with `factor` times the learning rate.

    The optimizer does not clip: the training step clips after the gradients of all replicas are summed, and
    Keras would clip before. `apply` therefore expects summed gradients. `precision` is the model's, see
    `build_model`, and also that of Muon's matrix products.
    """
    schedule = Schedule(spec, steps_per_epoch, total_steps, scale, factor)
    optimizer = _optimizer(spec, schedule, precision)
    apply_without_all_reduce(optimizer)
    if spec.weight_decay and spec.name != "muon":
        # Biases and normalization weights have one dimension; weight decay does not improve them (He et al.
        # 2019).
        optimizer.exclude_from_weight_decay([weight for weight in weights if len(weight.shape) < 2])
    optimizer.build(weights)
    return optimizer, schedule


def _optimizer(spec: OptimizerSpec, schedule: Schedule, precision: str) -> keras.Optimizer:
    common: dict[str, Any] = {"learning_rate": schedule, "weight_decay": spec.weight_decay or None}
    if spec.name == "sgd":
        return keras.optimizers.SGD(momentum=spec.momentum, nesterov=spec.nesterov, **common)
    if spec.name == "rmsprop":
        return keras.optimizers.RMSprop(momentum=spec.momentum, **common)
    if spec.name == "adam":
        return keras.optimizers.Adam(**common)
    if spec.name == "muon":
        return Muon(
            schedule,
            momentum=spec.momentum,
            nesterov=spec.nesterov,
            decay=spec.weight_decay,
            rest_ratio=(spec.rest_rate or spec.learning_rate) / spec.learning_rate,
            rest_momentum=spec.rest_momentum if spec.rest == "sgd" else None,
            unit_kernels=spec.unit_kernels,
            compute_dtype=precision,
        )
    # Keras's AdamW has a default decay of 0.004.
    return keras.optimizers.AdamW(**{**common, "weight_decay": spec.weight_decay})
