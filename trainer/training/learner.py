"""Models, optimizers and all other variables that training changes, and their initialization.

`Learner.variables` returns everything that a restart needs. The average of the weights generalises better
than the last weights (Polyak and Juditsky 1992; Tarvainen and Valpola 2017).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from trainer.data.dataset import Split
from trainer.distributed.devices import Cluster, choose_precision
from trainer.model import build_inference_model, build_model
from trainer.model.airbench import PatchSums, WhiteningConv2D, sum_patches, total_of, whitening_weights
from trainer.spec import RunSpec
from trainer.training.host_sync import HostSync
from trainer.training.optimizer import build_scale
from trainer.training.phases import Phase, build_phases


class WeightAverage:
    """Shadow variables of all weights, including the moving statistics of batch normalization."""

    def __init__(self, model: keras.Model, decay: float) -> None:
        self.decay = decay
        self.weights = [weight.value for weight in model.weights]
        self.shadows = [
            tf.Variable(weight, trainable=False, name=f"average_{index}")
            for index, weight in enumerate(self.weights)
        ]

    def reset(self) -> None:
        """Set the average to the current weights."""
        for shadow, weight in zip(self.shadows, self.weights, strict=True):
            shadow.assign(weight)

    def update(self, step: tf.Tensor, changing: Sequence[keras.Variable]) -> None:
        """Move the shadows of the `changing` weights towards them, after step `step` of a phase (from 0).

        The decay is min(decay, (1 + step) / (10 + step)). It starts at 0.1, so that the initial weights of
        the phase fade quickly.
        """
        changing_ids = {id(weight.value) for weight in changing}
        step = tf.cast(step, tf.float32)
        decay = tf.minimum(self.decay, (1.0 + step) / (10.0 + step))
        for shadow, weight in zip(self.shadows, self.weights, strict=True):
            if id(weight) in changing_ids:
                shadow.assign_sub((1.0 - decay) * (shadow - weight))


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
        sources = self.average.shadows if self.average else [weight.value for weight in self.model.weights]
        for target, source in zip(self.inference_model.weights, sources, strict=True):
            target.assign(source)
        return self.inference_model

    def take_inference_weights(self) -> None:
        """Copy the weights of the inference model into the one in training, and into the average."""
        copies = [[weight.value for weight in self.model.weights]]
        copies += [self.average.shadows] if self.average else []
        for targets in copies:
            for target, source in zip(targets, self.inference_model.weights, strict=True):
                target.assign(source)

    def assign(self, weight: keras.Variable, value: Any) -> None:
        """Assign `value` to a weight of the model in training and its average, before the first step."""
        weight.assign(value)
        if self.average is not None:
            index = next(i for i, other in enumerate(self.model.weights) if other is weight)
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

    def inference_variables(self) -> dict[str, tf.Variable]:
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


_MAX_WHITENING_IMAGES = 1_000
"""Images evenly spaced over the split: enough for the statistics of a dozen values."""


def whiten_first_layer(learner: Learner, split: Split, cluster: Cluster) -> None:
    """Fit the whitening layer of `learner`, if it has one, to images of `split`; all processes call this."""
    layers = [layer for layer in learner.model.layers if isinstance(layer, WhiteningConv2D)]
    if not layers:
        return
    kernel, bias = whitening_weights(_sum_sample(split, cluster))
    for layer in layers:
        learner.assign(layer.kernel, kernel)
        learner.assign(layer.bias, bias)
    # The last digit of an eigenvector may differ between CPUs, so all processes use the chief's.
    HostSync(cluster.group).broadcast_variables(learner.variables(), "whitened")


def _sum_sample(split: Split, cluster: Cluster) -> PatchSums:
    """Return the sums over the sample; each process reads the images that it owns."""
    count = len(split.labels)
    sample = np.unique(np.linspace(0, count - 1, min(count, _MAX_WHITENING_IMAGES)).astype(np.int64))
    own = sample[split.owners(cluster.process_count)[sample] == cluster.process_index]
    sums = sum_patches(split.pixels.gather(own))
    if cluster.process_count == 1:
        return sums
    values = {name: value.tolist() for name, value in asdict(sums).items()}
    parts = [json.loads(message) for message in cluster.group.all_gather(json.dumps(values).encode())]
    return total_of([PatchSums(*(np.array(part[name]) for name in values)) for part in parts])
