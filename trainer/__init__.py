"""Batch training job for image classifiers, from a spec and images to a served model.

`train` and `load` are the Python interface, see `trainer.api`; they are imported when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.api import Prediction, Run, load, train

__version__ = "0.1.0"
__all__ = ["Prediction", "Run", "__version__", "load", "train"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module("trainer.api"), name)
