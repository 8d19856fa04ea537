"""A wish to stop, and how long it may wait.

In: SIGTERM and SIGINT. Out: a flag that training reads between two calls, so that it can
save; everywhere else the wish is granted at once. A second signal always is, and when the
grace is over the process ends wherever it is: what it writes is whole or not there.
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

from trainer.exits import StoppedError

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_ONE_WISH_SECONDS = 1.0
_WORDS_SECONDS = 0.5
_OVERDUE = "Stopped on request, before the work in progress ended; what was finished is kept."
_TWICE = "Stopped at once on a second request; what was finished is kept."
GRACE_SECONDS = 10.0
"""Where no spec says how long."""


class Stop:
    """Knows whether someone asked this process to stop."""

    def __init__(self, grace_seconds: float = GRACE_SECONDS) -> None:
        self.grace_seconds = grace_seconds
        self.advice = ""
        """A sentence on what to do where the grace was too short."""
        self.outcome: Callable[[], str] = str
        """Returns a sentence on what a restart does, without waiting for anything."""
        self.requested = False
        self.by_hand = False
        """Whether a person asked, by Ctrl-C."""
        self._patient = self._listens = self._ended = False
        self._heard = 0.0
        self._wakeup = -1

    def is_requested(self) -> bool:
        """Return whether a stop was asked for."""
        return self.requested

    def is_overdue(self, seconds: float) -> bool:
        """Return whether a stop was asked for longer than that ago."""
        return self.requested and time.monotonic() - self._heard > seconds

    def listen(self) -> None:
        """Take over SIGTERM and SIGINT; only a process's main thread can."""
        self._listens = True
        if self._wakeup < 0:
            received, self._wakeup = os.pipe()
            os.set_blocking(self._wakeup, False)
            threading.Thread(target=self._watch, args=(received,), daemon=True).start()
        signal.set_wakeup_fd(self._wakeup, warn_on_full_buffer=False)
        for number in _SIGNALS:
            signal.signal(number, self._hear)

    def listen_on(self) -> None:
        """Take them over once more, if this process listened: a library may have taken one for itself."""
        if self._listens:
            self.listen()

    def end(self) -> None:
        """Hear nothing more: what was to be done is done, and the process is about to end by itself."""
        self._ended, self._listens = self._listens, False
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within this block hear again what `end` let go, if this process listened before."""
        if not self._ended:
            yield
            return
        self.listen()
        try:
            yield
        finally:
            self.end()

    @contextmanager
    def patience(self) -> Iterator[None]:
        """Within this block a stop is only noted: the block looks at `is_requested` and ends itself."""
        self._patient = True
        try:
            yield
        finally:
            self._patient = False
        if self.requested:
            # Heard too late for the block to see it.
            raise StoppedError("Stopped on request; what was finished is kept.")

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            return
        self.requested, self._heard = True, time.monotonic()
        self.by_hand = number == signal.SIGINT
        if not self._patient:
            raise StoppedError("Stopped on request. What was finished is kept.")

    def _watch(self, received: int) -> None:
        """End the process after the grace period or a second signal, wherever its main thread is.

        A Python signal handler runs between two instructions of the main thread, so not before a long call of
        a library returns. The number of each signal is written to a pipe at once, which this thread reads.
        """
        first = 0.0
        while number := os.read(received, 1):
            if number[0] not in _SIGNALS:
                continue
            if not first:
                first = time.monotonic()
                end = threading.Timer(min(self.grace_seconds, threading.TIMEOUT_MAX), self._end)
                end.daemon = True
                end.start()
            elif time.monotonic() - first > _ONE_WISH_SECONDS:
                # A sender that signals the process and its group asks once, not twice.
                self._exit_at_once()

    def _end(self) -> None:
        """Say that the grace is over, and end the process."""
        # Past Python's own buffers, whose locks the rest may hold; no one may be reading.
        text = self._text(_OVERDUE, self.advice, f"{self.grace_seconds:g} s")
        words = threading.Thread(target=os.write, args=(2, text), daemon=True)
        words.start()
        words.join(_WORDS_SECONDS)
        os._exit(StoppedError.exit_code)

    def _exit_at_once(self) -> NoReturn:
        """End the process, with a sentence if standard error takes it without a wait."""
        with suppress(OSError, ValueError):
            if select.select([], [2], [], 0)[1]:
                os.write(2, self._text(_TWICE, "", "a second signal"))
        os._exit(StoppedError.exit_code)

    def _text(self, what: str, advice: str, received: str) -> bytes:
        sentences = filter(None, (what, self.outcome(), advice, f"Received: {received}"))
        return f"Error: {' '.join(sentences)}\n".encode()
