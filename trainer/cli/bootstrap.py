"""Environment variables that must be set before TensorFlow is imported, and translation of its errors.

Variables that the user set are kept, except KERAS_BACKEND.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import re
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from trainer.errors import OutOfMemoryError, StoppedError, TemporaryError, UsageError

if TYPE_CHECKING:
    from trainer.distributed import ProcessGroup

TENSORFLOW_MODULES = ("tensorflow", "keras", "tensorboard")
"""Modules that the extras install and plain `pip install .` does not."""
_DISTRIBUTIONS = ("tensorflow", "tensorflow-cpu", "tensorflow-tpu")
_OLDEST = (2, 20)

_UNUSED_BY_KERAS = ("IPython", "matplotlib", "sklearn")
"""Packages that Keras imports if they are installed, for features that are not used here."""

_LEAST_ADDRESSES = 2 << 30
"""Minimum address space in bytes. The demo needs more on two cores, and each thread adds to it."""

_STDERR = 2
_stderr = _STDERR
"""File descriptor of the original standard error; it is not 2 while TensorFlow is imported."""

_DEFAULTS = {
    # Otherwise TensorFlow's C++ code logs dozens of lines at import.
    "TF_CPP_MIN_LOG_LEVEL": "2",
    # The Cloud Storage client requests each bucket's metadata in a thread, to label traces that are not
    # collected. The request may need a permission that the user lacks.
    "DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA": "true",
}
# TensorFlow enables oneDNN's convolutions by default only on CPUs with AVX512. With AVX2 alone they were
# also faster, by 45% for a residual network on an AMD EPYC.
_X86_DEFAULTS = {"TF_ENABLE_ONEDNN_OPTS": "1"}


def prepare_libraries() -> None:
    """Set the defaults. Must be called before TensorFlow is imported, which reads them once."""
    defaults = _DEFAULTS | (_X86_DEFAULTS if platform.machine() == "x86_64" else {})
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    # Always overwritten: a notebook or ~/.keras may select a backend that is not supported here.
    os.environ["KERAS_BACKEND"] = "tensorflow"


def require_tensorflow() -> None:
    """Raise ModuleNotFoundError if a module of the extras is not installed; imports nothing.

    Raises UsageError for a TensorFlow older than 2.20, such as that of a notebook or a base image.
    """
    import importlib.metadata  # slow, and not needed for --help

    for name in TENSORFLOW_MODULES:
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(f"no module {name}", name=name)
    for name in _DISTRIBUTIONS:
        with suppress(importlib.metadata.PackageNotFoundError):
            version = importlib.metadata.version(name) or ""
            numbers = tuple(map(int, re.findall(r"\d+", version)[:2]))
            if numbers and numbers < _OLDEST:
                raise UsageError(
                    f"TensorFlow {_OLDEST[0]}.{_OLDEST[1]} or newer is required.",
                    "Run `pip install '.[cpu]'`, or gpu or tpu, in the folder of this project.",
                    received=f"{name} {version}",
                )


@contextmanager
def translate_memory_errors(advice: str) -> Iterator[None]:
    """Translate the out-of-memory errors of TensorFlow and Python into OutOfMemoryError."""
    try:
        yield
    except Exception as error:
        is_tensorflow = type(error).__name__ == "ResourceExhaustedError"
        if not (is_tensorflow or isinstance(error, MemoryError)):
            raise
        raise OutOfMemoryError("Out of memory.", advice, received=_memory_line(error)) from None


def _memory_line(error: Exception) -> str:
    """Return the line of the message about memory; TensorFlow's first line may only name the location."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no more memory"]
    return next((line for line in lines if "OOM" in line or "memory" in line.lower()), lines[0])[:200]


@contextmanager
def translate_peer_errors(group: ProcessGroup) -> Iterator[None]:
    """Translate a failed collective of TensorFlow into the error of the failed peer, or TemporaryError."""
    from trainer.distributed.process_group import PING_SECONDS, SILENCE_SECONDS

    try:
        yield
    except Exception as error:
        kinds = {kind.__name__ for kind in type(error).__mro__}
        if group.process.process_count == 1 or "OpError" not in kinds or "ResourceExhaustedError" in kinds:
            raise
        # TensorFlow may fail first; `ProcessGroup` detects the failed process only after its silence timeout.
        deadline = time.monotonic() + SILENCE_SECONDS + PING_SECONDS
        while time.monotonic() < deadline:
            group.raise_if_failed()
            time.sleep(0.1)
        raise TemporaryError(
            "The processes of the run lost their connections.",
            "Restart them to resume from the last checkpoint.",
            received=str(error).splitlines()[0][:300],
        ) from None


def _require_address_space() -> None:
    """Raise OutOfMemoryError for an address space that is too small for TensorFlow; warn of any other limit.

    Beyond the limit its threads abort (exit code 134) or fault (139) before a handler can run.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return
    received = f"ulimit -v {limit >> 10}"
    if limit < _LEAST_ADDRESSES:
        raise OutOfMemoryError(
            f"The address space of this process is limited to less than the {_LEAST_ADDRESSES >> 30} GiB "
            "that TensorFlow needs.",
            "Remove the limit with `ulimit -v unlimited`.",
            received=received,
        )
    write_stderr(
        f"note: the address space of this process is limited ({received}). If it is used up, the process "
        "ends with 134 or 139 and without a message, which means out of memory.\n"
    )


def import_tensorflow() -> None:
    """Import TensorFlow without its messages about oneDNN, which no log level suppresses.

    Packages that Keras would import but are not used here are hidden. If the import fails, the messages are
    printed. Raises ModuleNotFoundError, UsageError, OutOfMemoryError, TemporaryError.
    """
    global _stderr
    prepare_libraries()
    from trainer.storage.temporary import temporary_parent

    parent = temporary_parent()
    _require_address_space()
    sys.stderr.flush()
    original = os.dup(_STDERR)
    with tempfile.TemporaryFile(dir=parent) as messages:
        os.dup2(messages.fileno(), _STDERR)
        _stderr = original
        try:
            with _hidden(*_UNUSED_BY_KERAS):
                importlib.import_module("tensorflow")
        except StoppedError:
            raise  # a signal, not a failed import
        except BaseException:
            messages.seek(0)
            os.write(original, messages.read())
            raise
        finally:
            os.dup2(original, _STDERR)
            _stderr = _STDERR
            os.close(original)


@contextmanager
def _hidden(*names: str) -> Iterator[None]:
    """Make new imports of the packages `names` fail; they take a third of the import time of Keras."""
    names = tuple(name for name in names if name not in sys.modules)
    sys.modules.update(dict.fromkeys(names))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]


def write_stderr(text: str) -> None:
    """Write to the original standard error, from any thread and at any time; errors are ignored."""
    with suppress(OSError):
        os.write(_stderr, text.encode())
