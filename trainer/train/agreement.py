"""What the processes of a run have to do alike, and how they come to agree on it.

In: what each of them sees: a signal, a clock, a checkpoint. Out: the same for all. With one process
it is what that one sees.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from trainer.hosts import Peers


@dataclass(frozen=True)
class Signs:
    """What is to be done after a call of steps."""

    is_stopped: bool
    """Whether anyone was asked to stop."""
    is_due: bool
    """Whether a checkpoint is due by the chief's clock."""
    block_steps: int
    """How many steps the chief wants in the blocks to come."""


class Agreement:
    """Asked by every process at the same points of the training, in the same order."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers

    @property
    def is_chief(self) -> bool:
        """Whether this process is the one that writes."""
        return self._peers.place.is_chief

    def signs(self, mine: Signs) -> Signs:
        """Return what all do: they stop if anyone has to, and else do as the chief says."""
        if self._peers.place.count == 1:
            return mine
        said = [json.loads(each) for each in self._peers.exchange(json.dumps(vars(mine)).encode())]
        return Signs(**{**said[0], "is_stopped": any(each["is_stopped"] for each in said)})

    def value(self, mine: Any) -> Any:
        """Return the chief's JSON value."""
        return (
            mine if self._peers.place.count == 1 else json.loads(self._peers.share(json.dumps(mine).encode()))
        )

    def state(self, variables: Mapping[str, tf.Variable], record: Any) -> Any:
        """Give all the chief's values of `variables` and return its `record`; with none nothing is sent."""
        record = self.value(record)
        if record is None or self._peers.place.count == 1:
            return record
        if self._peers.place.is_chief:
            buffer = io.BytesIO()
            np.savez(buffer, **{name: variable.numpy() for name, variable in variables.items()})
            self._peers.share(buffer.getvalue())
            return record
        with np.load(io.BytesIO(self._peers.share(b"")), allow_pickle=False) as arrays:
            for name, variable in variables.items():
                variable.assign(arrays[name])
        return record
