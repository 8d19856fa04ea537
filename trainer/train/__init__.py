"""Training loop shared by all distribution strategies.

`train` takes a `Learner`, a dataset, the spec and an `AsyncCheckpointer`. It leaves the trained
weights in the learner's inference model and returns the history in a `TrainResult`.
"""

from trainer.train.async_checkpointer import AsyncCheckpointer
from trainer.train.history import TrainResult
from trainer.train.host_sync import HostSync
from trainer.train.learner import Learner, build_learner
from trainer.train.loop import train
from trainer.train.observer import CallReport, Observer

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
