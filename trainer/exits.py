"""Exit codes and the exceptions that carry them.

Code, manifests and documentation are checked against the table `EXIT_CODES`. There is one exception class
per exit code that a user can cause. Its message states what went wrong, where, and what to do; the command
line prints it without a traceback and exits with `exit_code`.
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
"""Exit code to (meaning, action of the Kubernetes podFailurePolicy)."""


class TrainerError(Exception):
    """An error with a message for the user; subclasses set the exit code."""

    exit_code: ClassVar[int] = 1


class UnchangedError(TrainerError):
    """Nothing to do: a finished run has equal data and spec."""

    exit_code = 0

    def __init__(self, message: str, run: str) -> None:
        super().__init__(message)
        self.run = run
        """Name of the finished run."""


class UsageError(TrainerError):
    """Invalid command line, spec, recipe or output folder."""

    exit_code = 2


class QualityError(TrainerError):
    """The run finished, but missed the required quality."""

    exit_code = 4


class DataError(TrainerError):
    """The images can't be used: missing, damaged, unsafe or inconsistent."""

    exit_code = 65


class AcceleratorError(TrainerError):
    """The required accelerator is not available."""

    exit_code = 69


class DivergedError(TrainerError):
    """Training diverged beyond recovery, or was restarted repeatedly without progress."""

    exit_code = 70


class TemporaryError(TrainerError):
    """A network, storage or disk failure that persists after all retries."""

    exit_code = 75


class OutOfMemoryError(TrainerError):
    """The host or the accelerator has too little memory for this run."""

    exit_code = 137


class StoppedError(TrainerError):
    """Stopped by a signal; complete checkpoints are kept."""

    exit_code = 143


def error_of(exit_code: int, message: str) -> TrainerError:
    """Return an error with the class of `exit_code`, or a plain TrainerError if no class has it."""
    kinds = {kind.exit_code: kind for kind in TrainerError.__subclasses__() if kind.exit_code}
    return kinds.get(exit_code, TrainerError)(message)
