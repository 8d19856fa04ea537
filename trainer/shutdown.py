"""Graceful shutdown on SIGTERM and SIGINT.

During training a signal sets a flag, which is read between two calls so that a checkpoint can be saved.
Everywhere else it raises StoppedError. A second signal, or the end of the grace period, ends the process at
once; files are written atomically, so that none is incomplete.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

from trainer.errors import StoppedError

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_SAME_REQUEST_SECONDS = 1.0
_WRITE_SECONDS = 0.5
_OVERDUE = "Stopped on request before the work in progress was complete; completed work is kept."
_FORCED = "Stopped immediately on a second request; completed work is kept."
GRACE_SECONDS = 10.0
"""Default grace period in seconds."""


class GracefulShutdown:
    """Signal handlers and shutdown state of this process."""

    def __init__(self, grace_seconds: float = GRACE_SECONDS) -> None:
        self.grace_seconds = grace_seconds
        self.advice = ""
        """Sentence to print when the grace period was too short."""
        self.outcome: Callable[[], str] = str
        """Returns a sentence on what a restart does; must not block."""
        self.requested = False
        self.interactive = False
        """Whether the signal was SIGINT, as from Ctrl-C."""
        self._is_deferred = self._is_installed = self._is_done = False
        self._requested_at = 0.0
        self._wakeup = -1

    def is_requested(self) -> bool:
        """Return whether a shutdown was requested."""
        return self.requested

    def is_overdue(self, seconds: float) -> bool:
        """Return whether a shutdown was requested more than `seconds` ago."""
        return self.requested and time.monotonic() - self._requested_at > seconds

    def install(self) -> None:
        """Install the handlers of SIGTERM and SIGINT; only the main thread can."""
        self._is_installed = True
        if self._wakeup < 0:
            reader, self._wakeup = os.pipe()
            os.set_blocking(self._wakeup, False)
            threading.Thread(target=self._watch, args=(reader,), daemon=True).start()
        signal.set_wakeup_fd(self._wakeup, warn_on_full_buffer=False)
        for number in _SIGNALS:
            signal.signal(number, self._handle_signal)

    def reinstall(self) -> None:
        """Reinstall the handlers if they were installed, since a library may have replaced one."""
        if self._is_installed:
            self.install()

    def ignore_signals(self) -> None:
        """Ignore SIGTERM and SIGINT: the work is done and the process is about to exit."""
        self._is_done, self._is_installed = self._is_installed, False
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    @contextmanager
    def handling_signals(self) -> Iterator[None]:
        """Handle signals again within this block if `end` disabled installed handlers."""
        if not self._is_done:
            yield
            return
        self.install()
        try:
            yield
        finally:
            self.ignore_signals()

    @contextmanager
    def defer(self) -> Iterator[None]:
        """Defer shutdown within this block, which polls `is_requested`; raise StoppedError after it."""
        self._is_deferred = True
        try:
            yield
        finally:
            self._is_deferred = False
        if self.requested:
            # The signal may have come after the last poll.
            raise StoppedError("Stopped on request.", "Completed work is kept.")

    def _handle_signal(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            return
        self.requested, self._requested_at = True, time.monotonic()
        self.interactive = number == signal.SIGINT
        if not self._is_deferred:
            raise StoppedError("Stopped on request.", "Completed work is kept.")

    def _watch(self, reader: int) -> None:
        """End the process after the grace period or a second signal, whatever the main thread does.

        A Python signal handler runs between two instructions of the main thread, so only after a long library
        call returns. The number of each signal is written to a pipe at once, which this thread reads.
        """
        first_at = 0.0
        while number := os.read(reader, 1):
            if number[0] not in _SIGNALS:
                continue
            if not first_at:
                first_at = time.monotonic()
                end = threading.Timer(min(self.grace_seconds, threading.TIMEOUT_MAX), self._end)
                end.daemon = True
                end.start()
            elif time.monotonic() - first_at > _SAME_REQUEST_SECONDS:
                # Some senders signal the process and its group at once; that counts as one signal.
                self._exit_at_once()

    def _end(self) -> None:
        """Print that the grace period is over, and end the process."""
        # os.write avoids Python's buffers, whose locks may be held; it blocks if nobody reads.
        text = self._text(_OVERDUE, self.advice, f"{self.grace_seconds:g} s")
        writer = threading.Thread(target=os.write, args=(2, text), daemon=True)
        writer.start()
        writer.join(_WRITE_SECONDS)
        os._exit(StoppedError.exit_code)

    def _exit_at_once(self) -> NoReturn:
        """End the process; print a message only if standard error does not block."""
        with suppress(OSError, ValueError):
            if select.select([], [2], [], 0)[1]:
                os.write(2, self._text(_FORCED, "", "a second signal"))
        os._exit(StoppedError.exit_code)

    def _text(self, problem: str, advice: str, received: str) -> bytes:
        sentences = filter(None, (problem, self.outcome(), advice, f"Received: {received}"))
        return f"Error: {' '.join(sentences)}\n".encode()
