"""Training loop shared by all distribution strategies.

`train` takes a `Learner`, a dataset, the spec and an `AsyncCheckpointer`. It leaves the trained
weights in the learner's inference model and returns the history in a `TrainResult`.
"""

from trainer.train.agreement import HostSync
from trainer.train.async_checkpointer import AsyncCheckpointer
from trainer.train.learner import Learner, build_learner
from trainer.train.observer import CallReport, Observer
from trainer.train.result import TrainResult
from trainer.train.training import train

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
