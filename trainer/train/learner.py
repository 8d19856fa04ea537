"""Models, optimizers and all other variables that training changes.

`Learner.variables` returns everything that a restart needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from trainer.distributed.devices import Cluster, choose_precision
from trainer.model import build_inference_model, build_model
from trainer.spec import RunSpec
from trainer.train.average import WeightAverage
from trainer.train.optimizer import build_scale
from trainer.train.phases import Phase, build_phases


@dataclass(frozen=True)
class Learner:
    """The model in training, the inference model, the phases with their optimizers, and the average."""

    model: keras.Model
    """The model in training, in the precision of training."""
    inference_model: keras.Model
    """Always in float32; filled by `fill_inference_model`."""
    phases: tuple[Phase, ...]
    """Consecutive phases that cover all epochs."""
    rate_scale: tf.Variable
    """Multiplies all learning rates, float32 scalar."""
    average: WeightAverage | None
    precision: str
    steps_per_epoch: int
    total_steps: int

    def phase_of(self, epoch: int) -> Phase:
        """Return the phase of `epoch`, counted from 0; the last phase for epochs after the end."""
        return next((phase for phase in self.phases if epoch < phase.end_epoch), self.phases[-1])

    def fill_inference_model(self) -> keras.Model:
        """Copy the weights, or their average, into the inference model and return it."""
        sources = self.average.shadows if self.average else [each.value for each in self.model.weights]
        for target, source in zip(self.inference_model.weights, sources, strict=True):
            target.assign(source)
        return self.inference_model

    def take_inference_weights(self) -> None:
        """Copy the weights of the inference model into the one in training, and into the average."""
        copies = [[each.value for each in self.model.weights]]
        copies += [self.average.shadows] if self.average else []
        for targets in copies:
            for target, source in zip(targets, self.inference_model.weights, strict=True):
                target.assign(source)

    def assign(self, weight: keras.Variable, value: Any) -> None:
        """Assign `value` to a weight of the model in training and its average, before the first step."""
        weight.assign(value)
        if self.average is not None:
            index = next(i for i, each in enumerate(self.model.weights) if each is weight)
            self.average.shadows[index].assign(value)

    def is_finite(self) -> bool:
        """Return whether all weights are finite."""
        return all(np.isfinite(weight.numpy()).all() for weight in self.model.weights)

    def variables(self) -> dict[str, tf.Variable]:
        """Return every variable that training changes, by a stable name.

        There are no random generators: all random numbers are functions of the seed and the step.
        """
        named: dict[str, tf.Variable] = {"schedule/scale": self.rate_scale}
        for index, variable in enumerate(self.model.variables):
            # Not the path, which contains a layer counter of the whole process.
            named[f"model/{index:04d}/{variable.name}"] = variable.value
        optimizers = [group.optimizer for phase in self.phases for group in phase.groups]
        for number, optimizer in enumerate(optimizers):
            folder = f"optimizer/{number}" if len(optimizers) > 1 else "optimizer"
            for index, variable in enumerate(optimizer.variables):
                named[f"{folder}/{index:04d}"] = variable.value
        for index, shadow in enumerate(self.average.shadows if self.average else []):
            named[f"average/{index:04d}"] = shadow
        return named

    def answering_variables(self) -> dict[str, tf.Variable]:
        """Return the variables of the inference model, by a stable name."""
        return {
            f"answer/{index:04d}": weight.value for index, weight in enumerate(self.inference_model.weights)
        }


def build_learner(spec: RunSpec, class_count: int, steps_per_epoch: int, cluster: Cluster) -> Learner:
    """Return a learner with weights initialized from `spec.seed`, in the scope of the cluster's strategy."""
    precision = choose_precision(spec.train.precision, cluster, spec.has_depthwise)
    # TF32 rounds the factors of products to ten bits, and the curves of a GPU would differ from a CPU's.
    tf.config.experimental.enable_tensor_float_32_execution(precision != "float32")
    total_steps = spec.train.epochs * steps_per_epoch
    with cluster.strategy.scope():
        size, channels = spec.data.image_size, spec.data.channels
        model = build_model(spec.model, class_count, size, precision, spec.seed, channels)
        scale = build_scale()
        phases = build_phases(spec, model, steps_per_epoch, scale, precision)
        average = WeightAverage(model, spec.train.ema_decay) if spec.train.ema_decay else None
    inference = build_inference_model(spec.model, class_count, size, channels)
    return Learner(model, inference, phases, scale, average, precision, steps_per_epoch, total_steps)
