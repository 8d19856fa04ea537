"""Training loop shared by all distribution strategies.

`train` takes a `Learner`, a dataset, the spec and an `AsyncCheckpointer`. It leaves the trained
weights in the learner's inference model and returns the history in a `TrainResult`.
"""

from trainer.training.checkpoint_manager import AsyncCheckpointer
from trainer.training.history import TrainResult
from trainer.training.host_sync import HostSync
from trainer.training.learner import Learner, build_learner
from trainer.training.loop import CallReport, Observer, train

__all__ = [
    "AsyncCheckpointer",
    "CallReport",
    "HostSync",
    "Learner",
    "Observer",
    "TrainResult",
    "build_learner",
    "train",
]
