"""Schema of the fine-tuning settings of a pretrained backbone."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from trainer.spec.checked import Checked, Count, SettingError, cross_check


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
