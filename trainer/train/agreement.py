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

from trainer.distributed import ProcessGroup


@dataclass(frozen=True)
class StepFlags:
    """Flags that all processes exchange after each call of the compiled steps."""

    is_stopped: bool
    """Whether a stop was requested on any process."""
    is_due: bool
    """Whether a checkpoint is due by the chief's clock."""
    block_steps: int
    """Number of steps that the chief requests for the next blocks."""


class HostSync:
    """Collectives that every process calls at the same points of the training, in the same order."""

    def __init__(self, peers: ProcessGroup) -> None:
        self._peers = peers

    @property
    def is_chief(self) -> bool:
        """Whether this process is the one that writes files."""
        return self._peers.process.is_chief

    def sync_flags(self, mine: StepFlags) -> StepFlags:
        """Return the flags for all processes: stop if any process has to, all other flags from the chief."""
        if self._peers.process.process_count == 1:
            return mine
        said = [json.loads(each) for each in self._peers.all_gather(json.dumps(vars(mine)).encode())]
        return StepFlags(**{**said[0], "is_stopped": any(each["is_stopped"] for each in said)})

    def broadcast(self, mine: Any) -> Any:
        """Broadcast the chief's JSON value and return it."""
        return (
            mine
            if self._peers.process.process_count == 1
            else json.loads(self._peers.broadcast(json.dumps(mine).encode()))
        )

    def broadcast_variables(self, variables: Mapping[str, tf.Variable], record: Any) -> Any:
        """Broadcast the chief's `record` and the values of `variables`; return the record.

        If the record is None, no values are sent.
        """
        record = self.broadcast(record)
        if record is None or self._peers.process.process_count == 1:
            return record
        if self._peers.process.is_chief:
            buffer = io.BytesIO()
            np.savez(buffer, **{name: variable.numpy() for name, variable in variables.items()})
            self._peers.broadcast(buffer.getvalue())
            return record
        with np.load(io.BytesIO(self._peers.broadcast(b"")), allow_pickle=False) as arrays:
            for name, variable in variables.items():
                variable.assign(arrays[name])
        return record
