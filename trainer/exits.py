"""The exit codes, and the exception that carries each.

In: nothing. Out: `EXIT_CODES`, the one table that code, manifests and docs are checked
against, and one exception class per code that a user can cause. Whatever raises one of
these has already written a message that says what was wrong, where, and what to do; the
command line prints that message without a traceback and ends with `exit_code`.
"""

from __future__ import annotations

from typing import ClassVar

EXIT_CODES: dict[int, tuple[str, str]] = {
    0: ("finished and published, or nothing to do", "-"),
    1: ("an unexpected error", "Count"),
    2: ("usage or spec error", "FailJob"),
    4: ("trained, but the quality asked for was not reached; everything is kept", "FailJob"),
    65: ("the data can't be used", "FailJob"),
    69: ("the accelerator asked for isn't there", "Count"),
    70: ("diverged beyond recovery, or restarted again and again without progress", "FailJob"),
    75: ("a temporary failure outlived its retries", "Ignore"),
    137: ("out of memory", "Count"),
    143: (
        "stopped on request, checkpoint safe; where the last save did not finish, the one before it",
        "Ignore",
    ),
}
"""Exit code to (meaning, what a Kubernetes podFailurePolicy does with it)."""


class TrainerError(Exception):
    """An error with a message for the user; subclasses fix the exit code."""

    exit_code: ClassVar[int] = 1


class UnchangedError(TrainerError):
    """There is nothing to do: another run did it."""

    exit_code = 0

    def __init__(self, message: str, run: str) -> None:
        super().__init__(message)
        self.run = run
        """The name of the other one."""


class UsageError(TrainerError):
    """A command line, a spec, a recipe or an output folder that can't be used."""

    exit_code = 2


class QualityError(TrainerError):
    """The run finished, but not as good as it was asked to be."""

    exit_code = 4


class DataError(TrainerError):
    """The images can't be used: missing, damaged, unsafe or inconsistent."""

    exit_code = 65


class AcceleratorError(TrainerError):
    """The accelerator that was asked for isn't there."""

    exit_code = 69


class DivergedError(TrainerError):
    """Training diverged beyond recovery."""

    exit_code = 70


class TemporaryError(TrainerError):
    """A network, storage or disk failure that outlived its retries."""

    exit_code = 75


class OutOfMemoryError(TrainerError):
    """The host or the accelerator has too little memory for this run."""

    exit_code = 137


class StoppedError(TrainerError):
    """Stopped on request by a signal, with the checkpoint safe."""

    exit_code = 143


def error_of(exit_code: int, message: str) -> TrainerError:
    """Return the error of `exit_code`, a TrainerError if no kind has it."""
    kinds = {kind.exit_code: kind for kind in TrainerError.__subclasses__() if kind.exit_code}
    return kinds.get(exit_code, TrainerError)(message)
