"""Agreement between the processes of a run: broadcast of values, train state and step flags.

With a single process every method returns its argument unchanged and sends nothing.
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
    """Flags that all processes exchange after each call of the compiled steps."""

    is_stopped: bool
    """Whether a stop was requested on any process."""
    is_due: bool
    """Whether a checkpoint is due by the chief's clock."""
    block_steps: int
    """Number of steps that the chief requests for the next blocks."""


class Agreement:
    """Collectives that every process calls at the same points of the training, in the same order."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers

    @property
    def is_chief(self) -> bool:
        """Whether this process is the one that writes files."""
        return self._peers.place.is_chief

    def signs(self, mine: Signs) -> Signs:
        """Return the flags for all processes: stop if any process has to, all other flags from the chief."""
        if self._peers.place.count == 1:
            return mine
        said = [json.loads(each) for each in self._peers.exchange(json.dumps(vars(mine)).encode())]
        return Signs(**{**said[0], "is_stopped": any(each["is_stopped"] for each in said)})

    def value(self, mine: Any) -> Any:
        """Broadcast the chief's JSON value and return it."""
        return (
            mine if self._peers.place.count == 1 else json.loads(self._peers.share(json.dumps(mine).encode()))
        )

    def state(self, variables: Mapping[str, tf.Variable], record: Any) -> Any:
        """Broadcast the chief's `record` and the values of `variables`; return the record.

        If the record is None, no values are sent.
        """
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
