"""Training loop shared by all distribution strategies.

`train` takes a `Learner`, a dataset, the spec and a `Saver` for checkpoints. It leaves the trained weights in
the learner's inference model and returns the history in a `TrainResult`.
"""

from trainer.train.agreement import Agreement
from trainer.train.learner import Learner, build_learner
from trainer.train.observer import CallReport, Observer
from trainer.train.result import TrainResult
from trainer.train.saver import Saver
from trainer.train.training import train

__all__ = ["Agreement", "CallReport", "Learner", "Observer", "Saver", "TrainResult", "build_learner", "train"]
