"""The right to work on a run, held by one process at a time.

In: a store and the name of the lease. Out: a `Lease` that a heartbeat keeps alive. Whoever
finds another's lease takes it over once its holder is known to be dead: at once if it was a
process of this machine, else after the heartbeat has not moved for `EXPIRY_SECONDS` of the
finder's own clock, so that no two clocks need to agree.
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from trainer.exits import TemporaryError, TrainerError
from trainer.storage.store import Content, Store

EXPIRY_SECONDS = 30.0
_BEATS_PER_EXPIRY = 6
_RELEASE_SECONDS = 2.0


class Lease:
    """A lease that is held; `release` gives it back. Ask `require` before anything is written."""

    def __init__(
        self,
        store: Store,
        name: str,
        version: str,
        holder: dict[str, Any],
        expiry_seconds: float,
        taken_at: float,
    ) -> None:
        self._store, self._name, self._version, self._holder = store, name, version, holder
        self._expiry = expiry_seconds
        self._beat_at = taken_at
        self._lost = ""
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True, name="lease")
        self._thread.start()

    def require(self) -> None:
        """Raise TemporaryError if the lease is no longer this process's.

        Asks the store only when the last heartbeat is so long ago that others may have given
        this process up, as after a pause of the whole machine.
        """
        with self._lock:
            if not self._lost and _now() - self._beat_at > 0.8 * self._expiry:
                self._beat()
        self.check()

    def check(self) -> None:
        """Raise TemporaryError if the lease is known to be lost; asks nobody."""
        if self._lost:
            raise TemporaryError(self._lost)

    def release(self) -> None:
        """Give the lease back, if it is still held; to call it again does nothing.

        Takes no longer than `_RELEASE_SECONDS`: a lease that can't be given back expires by itself.
        """
        if self._ended.is_set():
            return
        self._ended.set()
        thread = threading.Thread(target=self._give_back, daemon=True, name="lease-release")
        thread.start()
        thread.join(_RELEASE_SECONDS)

    def _give_back(self) -> None:
        self._thread.join()
        if not self._lost:
            with suppress(TrainerError):
                self._store.remove(self._name, self._version)

    def _keep(self) -> None:
        while not self._ended.wait(self._expiry / _BEATS_PER_EXPIRY) and not self._lost:
            # Nobody can be asked for now. Whoever writes has to ask, and then hears how it is.
            with suppress(Exception), self._lock:
                self._beat()

    def _beat(self) -> None:
        began = _now()
        self._holder["beats"] += 1
        version = self._store.swap(self._name, _encoded(self._holder), self._version)
        if version is None:
            # A beat that landed before, and whose reply was lost for good, is its own.
            found = self._store.read(self._name)
            is_mine = found is not None and _decoded(found).get("id") == self._holder["id"]
            version = found.version if found is not None and is_mine else None
        if version is not None:
            self._version, self._beat_at = version, began
            return
        took = "Another process took this run over, since this one seemed dead"
        self._lost = (
            f"{took if found else took + ', and is done, or its lease was removed'}; start the same command "
            f"again to see how it stands. Received: {self._store.at(self._name)}"
        )


def take_lease(
    store: Store, name: str, on_wait: Callable[[str], None], expiry_seconds: float = EXPIRY_SECONDS
) -> Lease:
    """Take the lease `name` of `store`, from a dead holder if there is one.

    `on_wait` hears, in words, of another holder that has to be watched. Raises TemporaryError
    if the other one is alive, and what `Store` raises.
    """
    holder = _me()
    while True:
        found = store.read(name)
        if found is not None and not _is_dead(found):
            on_wait(f"{_describe(found)} has been at work on this run; watching whether it is alive")
            found = _watch(store, name, found, expiry_seconds)
        began = _now()
        version = store.swap(name, _encoded(holder), found.version if found else None)
        if version is not None:
            return Lease(store, name, version, holder, expiry_seconds, began)


def _watch(store: Store, name: str, before: Content, expiry_seconds: float) -> Content | None:
    """Return the lease when its holder is dead, None when it is given back. Raises TemporaryError."""
    until = time.monotonic() + expiry_seconds
    while time.monotonic() < until:
        time.sleep(expiry_seconds / _BEATS_PER_EXPIRY / 4)
        found = store.read(name)
        if found is None:
            return None
        if found.version != before.version:
            raise TemporaryError(
                f"Another process is at work on this run: {_describe(found)}. Wait for it, or choose another "
                f"--run-name. Received: {store.at(name)}"
            )
    return before


def _now() -> float:
    """Return seconds of a clock that goes on, unlike Python's monotonic one, while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _is_dead(content: Content) -> bool:
    """Return whether the holder was a process of this machine that has ended."""
    holder, here = _decoded(content), _place()
    if any(holder.get(key) != value for key, value in here.items()):
        return False
    started = _started(int(holder.get("pid", 0)))
    if started is None and _is_anothers(int(holder.get("pid", 0))):
        return False  # it may be alive: nothing more is seen of another user's processes
    return started != holder.get("process_started")


def _me() -> dict[str, Any]:
    return {
        "id": secrets.token_hex(8),
        "host": platform.node(),
        "pid": os.getpid(),
        "process_started": _started(os.getpid()),
        **_place(),
        "beats": 0,
    }


def _place() -> dict[str, str]:
    """Return what processes that can see each other have in common: a boot, and a table of processes.

    Where the system doesn't tell, it is another one each time: nobody is then taken for a neighbour.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return {"boot": boot, "processes": os.readlink("/proc/self/ns/pid")}
    except OSError:
        return {"boot": secrets.token_hex(8), "processes": ""}


def _started(pid: int) -> str | None:
    """Return when process `pid` started, in clock ticks since boot; None if there is no such process."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    state, *fields = status.rpartition(")")[2].split()
    # A zombie holds nothing any more.
    return None if state == "Z" else fields[18]


def _is_anothers(pid: int) -> bool:
    """Return whether there is a process `pid` of another user."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except OSError:
        pass
    return False


def _describe(content: Content) -> str:
    holder = _decoded(content)
    return f"process {holder.get('pid', '?')} on {holder.get('host', 'an unknown host')}"


def _encoded(holder: dict[str, Any]) -> bytes:
    return json.dumps(holder).encode()


def _decoded(content: Content) -> dict[str, Any]:
    try:
        holder = json.loads(content.data)
    except (ValueError, RecursionError):
        return {}
    return holder if isinstance(holder, dict) else {}
