"""TensorBoard event files with one set of scalars per epoch.

The rows of the history are written to the run's events/ folder, which TensorBoard can read during training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from trainer.errors import TemporaryError
from trainer.storage.fencing import require_right


class EventLog:
    """Writes rows as scalars; the step is the epoch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writer: tf.summary.SummaryWriter | None = None

    def replay(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Replace all event files by `rows`, which removes rows of lost epochs and adds missing ones."""
        self.close()
        require_right(self.folder)
        for old in self.folder.glob("events.out.tfevents.*"):
            old.unlink()
        for row in rows:
            self.add(row)

    def add(self, row: Mapping[str, Any]) -> None:
        """Write one row and flush it. Raises TemporaryError if it can't be written."""
        require_right(self.folder)
        try:
            self._write(row)
        except tf.errors.OpError as error:
            raise TemporaryError(
                "TensorBoard's events could not be written; is the disk full? Free some space and run the "
                "same command again.",
                received=f"{self.folder} ({error.message[:200]})",
            ) from None

    def _write(self, row: Mapping[str, Any]) -> None:
        if self._writer is None:
            self._writer = tf.summary.create_file_writer(str(self.folder))
        with self._writer.as_default(step=row["epoch"]):
            for name, value in row.items():
                if name != "epoch":
                    tf.summary.scalar(name, value)
        self._writer.flush()

    def close(self) -> None:
        """Close the current event file, if one is open."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
