"""Detection of removed runs, with several threads that check at once."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from trainer.errors import TemporaryError
from trainer.runs.folder import Presence
from trainer.storage.folder import FolderStore
from trainer.storage.store import Entry


class SlowStore(FolderStore):
    """Store whose first answer arrives late."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.has_looked, self.may_answer = threading.Event(), threading.Event()

    def find(self, name: str) -> Entry | None:
        found = super().find(name)
        if not self.has_looked.is_set() and name == "spec.yaml":
            self.has_looked.set()
            assert self.may_answer.wait(60)
        return found


def test_late_result_of_one_thread_is_not_a_removal(tmp_path: Path) -> None:
    store = SlowStore(tmp_path / "stored")
    presence = Presence(tmp_path / "local", store)
    errors: list[BaseException] = []

    def check() -> None:
        try:
            presence.require_stored()
        except TemporaryError as error:
            errors.append(error)

    early = threading.Thread(target=check)
    early.start()
    assert store.has_looked.wait(60)
    store.write("spec.yaml", b"")
    presence.require_stored()
    store.may_answer.set()
    early.join()
    assert errors == []


def test_removal_is_reported_at_every_check(tmp_path: Path) -> None:
    (path := tmp_path / "run").mkdir()
    presence = Presence(path, None)
    presence.require()
    (path / "spec.yaml").touch()
    presence.require()
    (path / "spec.yaml").unlink()
    for _ in range(2):
        with pytest.raises(TemporaryError, match=r"The run was removed .* Received: neither starts\.jsonl"):
            presence.require()
    presence.forget()
    presence.require()
