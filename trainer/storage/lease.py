"""Lease on a run: at most one process at a time works on it.

A heartbeat renews the `Lease` in the store. Another process takes over the lease of a dead holder. A holder
that was a process of the same machine is dead once it has ended. Any other holder is dead when its heartbeat
has not changed for `EXPIRY_SECONDS` by the clock of the observing process, so clocks need not be
synchronized.
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

from trainer.errors import TemporaryError, TrainerError
from trainer.storage.store import Content, Store

EXPIRY_SECONDS = 30.0
_BEATS_PER_EXPIRY = 6
_RELEASE_SECONDS = 2.0


class Lease:
    """A lease held by this process, until `release`. Call `require` before every write."""

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
        self._lost: TemporaryError | None = None
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew_regularly, daemon=True, name="lease")
        self._thread.start()

    def require(self) -> None:
        """Raise TemporaryError if this process no longer holds the lease.

        Accesses the store only if the last heartbeat is so old that other processes may consider this one
        dead, for example after the machine was suspended.
        """
        with self._lock:
            if not self._lost and _now() - self._beat_at > 0.8 * self._expiry:
                self._renew()
        self.check()

    def check(self) -> None:
        """Raise TemporaryError if the lease is known to be lost; never accesses the store."""
        if self._lost:
            raise self._lost

    def release(self) -> None:
        """Release the lease if this process still holds it; a second call does nothing.

        Takes at most `_RELEASE_SECONDS`: a lease that cannot be released expires.
        """
        if self._ended.is_set():
            return
        self._ended.set()
        thread = threading.Thread(target=self._remove_lease, daemon=True, name="lease-release")
        thread.start()
        thread.join(_RELEASE_SECONDS)

    def _remove_lease(self) -> None:
        self._thread.join()
        if not self._lost:
            with suppress(TrainerError):
                self._store.remove(self._name, self._version)

    def _renew_regularly(self) -> None:
        while not self._ended.wait(self._expiry / _BEATS_PER_EXPIRY) and not self._lost:
            # The heartbeat has no caller to report to. The next `require` before a write raises the error.
            with suppress(Exception), self._lock:
                self._renew()

    def _renew(self) -> None:
        began = _now()
        self._holder["beats"] += 1
        version = self._store.swap(self._name, _encoded(self._holder), self._version)
        if version is None:
            # An earlier heartbeat may have been written although its response was lost.
            current = self._store.read(self._name)
            if current is not None and _decoded(current).get("id") == self._holder["id"]:
                version = current.version
        if version is not None:
            self._version, self._beat_at = version, began
            return
        end = "" if current else " It has ended since, or the lease was removed."
        self._lost = TemporaryError(
            f"Another process has taken over this run, because this process seemed dead.{end}",
            "Start the same command again to see the state of the run.",
            received=self._store.at(self._name),
        )


def take_lease(
    store: Store, name: str, on_wait: Callable[[str], None], expiry_seconds: float = EXPIRY_SECONDS
) -> Lease:
    """Acquire the lease `name` of `store`, taking it over if its holder is dead.

    `on_wait` is called with a message if another holder has to be observed first, for up to `expiry_seconds`.
    Raises TemporaryError if that holder is alive, and the errors of `Store`.
    """
    holder = describe_self()
    while True:
        current = store.read(name)
        if current is not None and not _is_dead(current):
            on_wait(f"{_describe(current)} holds the lease of this run; checking whether it is alive")
            current = _watch(store, name, current, expiry_seconds)
        began = _now()
        version = store.swap(name, _encoded(holder), current.version if current else None)
        if version is not None:
            return Lease(store, name, version, holder, expiry_seconds, began)


def _watch(store: Store, name: str, before: Content, expiry_seconds: float) -> Content | None:
    """Return the lease if its holder is dead, None if it was released. Raises TemporaryError."""
    until = time.monotonic() + expiry_seconds
    while time.monotonic() < until:
        time.sleep(expiry_seconds / _BEATS_PER_EXPIRY / 4)
        current = store.read(name)
        if current is None:
            return None
        if current.version != before.version:
            raise TemporaryError(
                f"Another process is working on this run: {_describe(current)}.",
                "Wait until it has ended, or choose another --run-name.",
                received=store.at(name),
            )
    return before


def _now() -> float:
    """Return seconds of a clock that, unlike `time.monotonic`, also advances during suspend."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _is_dead(content: Content) -> bool:
    """Return whether the holder was a process of this machine that has ended."""
    holder, local_ids = _decoded(content), _read_local_ids()
    if any(holder.get(key) != value for key, value in local_ids.items()):
        return False
    start_time = _read_start_time(int(holder.get("pid", 0)))
    if start_time is None and _belongs_to_another_user(int(holder.get("pid", 0))):
        return False  # it may be alive: processes of other users are not visible in full
    return start_time != holder.get("process_started")


def describe_self() -> dict[str, Any]:
    return {
        "id": secrets.token_hex(8),
        "host": platform.node(),
        "pid": os.getpid(),
        "process_started": _read_start_time(os.getpid()),
        **_read_local_ids(),
        "beats": 0,
    }


def _read_local_ids() -> dict[str, str]:
    """Return what identifies processes that see each other: the boot ID and the PID namespace.

    If the system does not provide them, the boot ID is random, so that no holder counts as local.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return {"boot": boot, "processes": os.readlink("/proc/self/ns/pid")}
    except OSError:
        return {"boot": secrets.token_hex(8), "processes": ""}


def _read_start_time(pid: int) -> str | None:
    """Return the start time of process `pid` in clock ticks since boot, None if it does not exist."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    state, *fields = status.rpartition(")")[2].split()
    # A zombie holds no resources.
    return None if state == "Z" else fields[18]


def _belongs_to_another_user(pid: int) -> bool:
    """Return whether process `pid` exists and belongs to another user."""
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
