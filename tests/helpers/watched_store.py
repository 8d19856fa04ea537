"""Store that intercepts writes of the champion pointer."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from trainer.runs.champion import CHAMPION
from trainer.storage.folder import FolderStore

NOW = datetime(2026, 1, 2, 3, 4, 5)


class Watched(FolderStore):
    """Store that passes each write of the champion pointer to `on_swap`."""

    def __init__(self, root: Path, on_swap: Callable[[Callable[[], str | None]], str | None]) -> None:
        super().__init__(root)
        self.on_swap = on_swap

    def swap(self, name: str, data: bytes, version: str | None) -> str | None:
        def do() -> str | None:
            return FolderStore.swap(self, name, data, version)

        return self.on_swap(do) if name == CHAMPION else do()
