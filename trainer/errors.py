"""Exit codes and the exceptions that carry them.

There is one exception class per exit code. Its message states what went wrong, where, and what to do; the
command line prints it without a traceback and exits with `exit_code`. Manifests and documentation are checked
against the table `EXIT_CODES`, which is derived from the classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar


class TrainerError(Exception):
    """An error with a message for the user; subclasses set the exit code and its meaning.

    `problem` and `remedy` are sentences: what went wrong and where, and what to do. `received` is the value
    or the path at fault. As text, the error is "PROBLEM REMEDY Received: RECEIVED".
    """

    exit_code: ClassVar[int] = 1
    meaning: ClassVar[str] = "an unexpected error"
    pod_failure_action: ClassVar[str] = "Count"
    """Action of the Kubernetes podFailurePolicy for the exit code."""

    def __init__(self, problem: str, remedy: str = "", received: object = None) -> None:
        super().__init__(problem, remedy, received)
        self.problem, self.remedy, self.received = problem, remedy, received

    def __str__(self) -> str:
        received = "" if self.received is None else f"Received: {self.received}"
        return " ".join(part for part in (self.problem, self.remedy, received) if part)


class UnchangedError(TrainerError):
    """Nothing to do: a finished run has equal data and spec."""

    exit_code = 0
    meaning = "finished and published, or nothing to do"
    pod_failure_action = "-"

    def __init__(self, problem: str, run: str) -> None:
        super().__init__(problem)
        self.run = run
        """Name of the finished run."""


class UsageError(TrainerError):
    """Invalid command line, spec, recipe or output folder."""

    exit_code = 2
    meaning = "usage or spec error"
    pod_failure_action = "FailJob"


class QualityError(TrainerError):
    """The run finished, but missed the required quality."""

    exit_code = 4
    meaning = "trained, but the required quality was not reached; all files are kept"
    pod_failure_action = "FailJob"


class DataError(TrainerError):
    """The images cannot be used: missing, damaged, unsafe or inconsistent."""

    exit_code = 65
    meaning = "the data cannot be used"
    pod_failure_action = "FailJob"


class AcceleratorError(TrainerError):
    """The required accelerator is not available."""

    exit_code = 69
    meaning = "the required accelerator is not available"
    pod_failure_action = "Count"


class DivergedError(TrainerError):
    """Training diverged beyond recovery, or was restarted repeatedly without progress."""

    exit_code = 70
    meaning = "diverged beyond recovery, or restarted repeatedly without progress"
    pod_failure_action = "FailJob"


class TemporaryError(TrainerError):
    """A network, storage or disk failure that persists after all retries."""

    exit_code = 75
    meaning = "a temporary failure that persists after all retries"
    pod_failure_action = "Ignore"


class OutOfMemoryError(TrainerError):
    """The host or the accelerator has too little memory for this run."""

    exit_code = 137
    meaning = "out of memory"
    pod_failure_action = "Count"


class StoppedError(TrainerError):
    """Stopped by a signal; complete checkpoints are kept."""

    exit_code = 143
    meaning = "stopped on request; the last complete checkpoint is kept"
    pod_failure_action = "Ignore"


_CLASSES: list[type[TrainerError]] = [TrainerError, *TrainerError.__subclasses__()]
_KINDS = {kind.exit_code: kind for kind in _CLASSES}

EXIT_CODES: dict[int, tuple[str, str]] = {
    code: (kind.meaning, kind.pod_failure_action) for code, kind in sorted(_KINDS.items())
}
"""Exit code to (meaning, action of the Kubernetes podFailurePolicy)."""


def error_of(exit_code: int, message: str) -> TrainerError:
    """Return an error with the class of `exit_code`, or a plain TrainerError if no class has it."""
    kind = _KINDS.get(exit_code, TrainerError)
    return (kind if exit_code else TrainerError)(message)


def causes_of(error: BaseException) -> Iterator[BaseException]:
    """Yield the error and its causes; the libraries nest exceptions up to four deep."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__
