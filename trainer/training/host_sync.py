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

    def __init__(self, group: ProcessGroup) -> None:
        self._group = group

    @property
    def is_chief(self) -> bool:
        """Whether this process is the one that writes files."""
        return self._group.process.is_chief

    def sync_flags(self, flags: StepFlags) -> StepFlags:
        """Return the flags for all processes: stop if any process has to, all other flags from the chief."""
        if self._group.process.process_count == 1:
            return flags
        messages = self._group.all_gather(json.dumps(vars(flags)).encode())
        all_flags = [json.loads(message) for message in messages]
        is_stopped = any(other["is_stopped"] for other in all_flags)
        return StepFlags(**{**all_flags[0], "is_stopped": is_stopped})

    def broadcast(self, value: Any) -> Any:
        """Broadcast the chief's JSON value and return it."""
        if self._group.process.process_count == 1:
            return value
        return json.loads(self._group.broadcast(json.dumps(value).encode()))

    def broadcast_variables(self, variables: Mapping[str, tf.Variable], record: Any) -> Any:
        """Broadcast the chief's `record` and the values of `variables`; return the record.

        If the record is None, no values are sent.
        """
        record = self.broadcast(record)
        if record is None or self._group.process.process_count == 1:
            return record
        if self._group.process.is_chief:
            buffer = io.BytesIO()
            np.savez(buffer, **{name: variable.numpy() for name, variable in variables.items()})
            self._group.broadcast(buffer.getvalue())
            return record
        with np.load(io.BytesIO(self._group.broadcast(b"")), allow_pickle=False) as arrays:
            for name, variable in variables.items():
                variable.assign(arrays[name])
        return record
