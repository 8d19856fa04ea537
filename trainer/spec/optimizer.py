"""Schemas of the optimizer and fine-tuning settings."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from trainer.spec.checked import Checked, Count, Fraction, NonNegative, Positive, SettingError, cross_check


class OptimizerSpec(Checked):
    """The optimizer and its learning-rate schedule."""

    name: Literal["sgd", "rmsprop", "adam", "adamw", "muon"] = "adamw"
    """Optimizer. muon orthogonalises the updates of hidden kernels (Jordan 2024); rest trains all other
    weights."""
    learning_rate: Positive = 0.001
    """Learning rate at the peak of the schedule."""
    momentum: float = Field(0.0, ge=0.0, lt=1.0)
    """Momentum of sgd, rmsprop and muon; the default of muon is 0.95."""
    nesterov: bool = False
    """Nesterov momentum for sgd and muon; the default of muon is true."""
    rest_rate: Positive | None = None
    """With muon: learning rate of biases, normalisation and the last layer; by default learning_rate."""
    rest: Literal["adamw", "sgd"] = "adamw"
    """With muon: optimizer of biases, normalisation and the last layer."""
    rest_momentum: float = Field(0.0, ge=0.0, lt=1.0)
    """With muon and rest sgd: momentum of that optimizer."""
    unit_kernels: bool = False
    """With muon: kernels keep a norm of one unit per filter, and a step is learning_rate of that norm."""
    weight_decay: NonNegative = 0.0
    """Decoupled weight decay of kernels; with rest sgd also of biases and normalisation."""
    clip_norm: Positive | None = None
    """Maximum global norm of the gradient, after it is summed over all replicas."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Learning-rate schedule."""
    warmup_epochs: NonNegative = 0.0
    """Epochs of linear warm-up, which may be a fraction."""
    final_fraction: Fraction = 0.0
    """Fraction of the learning rate at which linear and cosine end."""

    @model_validator(mode="before")
    @classmethod
    def _momentum_of_muon(cls, value: Any) -> Any:
        is_muon = isinstance(value, dict) and value.get("name") == "muon"
        return {"momentum": 0.95, "nesterov": True, **value} if is_muon else value

    @cross_check
    def _used(self) -> OptimizerSpec:
        has_momentum, is_muon = self.name in ("sgd", "rmsprop", "muon"), self.name == "muon"
        uses_rest = bool(self.rest_rate or self.rest != "adamw" or self.unit_kernels)
        violations = {
            "momentum and optimizer.nesterov require optimizer.name sgd, rmsprop or muon": (
                (self.momentum or self.nesterov) and not has_momentum
            ),
            "nesterov requires optimizer.name sgd or muon": self.nesterov and self.name == "rmsprop",
            "rest, optimizer.rest_rate and optimizer.unit_kernels require optimizer.name muon": (
                uses_rest and not is_muon
            ),
            "rest_momentum requires optimizer.rest sgd": self.rest_momentum and self.rest != "sgd",
            "final_fraction requires optimizer.schedule linear or cosine": (
                self.final_fraction and self.schedule == "constant"
            ),
        }
        for rule, is_violated in violations.items():
            if is_violated:
                raise SettingError(
                    f"optimizer.{rule}.",
                    "Remove the setting, or change the one that it requires.",
                    f"name {self.name}, rest {self.rest}, schedule {self.schedule}",
                )
        return self


USUAL_RATES = {"sgd": 0.05, "rmsprop": 0.001, "adam": 0.001, "adamw": 0.001, "muon": 0.001}
"""Default learning rate per optimizer, which works well for most networks."""


class FinetuneSpec(Checked):
    """Fine-tuning phases of a pretrained backbone: frozen, then its last stage, then all weights.

    The epochs that remain after the first two phases train all weights.
    """

    probe: Literal["logistic", "steps"] = "logistic"
    """How the head is trained while the backbone is frozen: logistic regression on cached features, or
    steps."""
    frozen_epochs: int = Field(1, ge=0)
    """Epochs with a frozen backbone. With `probe: logistic` 0 or 1; more need `probe: steps`."""
    last_stage_epochs: int = Field(0, ge=0)
    """Epochs that train the head and the last stage of the backbone."""
    backbone_rate: float = Field(0.1, gt=0.0, le=1.0)
    """Multiplier of the learning rate for the backbone."""
    layer_decay: float = Field(1.0, gt=0.0, le=1.0)
    """Multiplier of the learning rate from each stage of the backbone to the one before it."""
    batch_norm: Literal["frozen", "train"] = "frozen"
    """Whether batch-norm statistics stay as pretrained, or are updated once all weights are trained."""
    folds: Count = 5
    """Folds of the cross-validation that chooses the regularisation of logistic regression."""

    @cross_check
    def _one_fit(self) -> FinetuneSpec:
        if self.probe == "logistic" and self.frozen_epochs > 1:
            raise SettingError(
                "train.finetune.probe logistic trains the head in a single epoch.",
                "Set train.finetune.frozen_epochs to 1, or train.finetune.probe to steps.",
                f"frozen_epochs {self.frozen_epochs}",
            )
        return self

    @property
    def frozen(self) -> int:
        """Epochs with a frozen backbone."""
        return self.frozen_epochs

    @property
    def first_epochs(self) -> int:
        """Epochs before all weights are trained."""
        return self.frozen + self.last_stage_epochs
