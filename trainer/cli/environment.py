"""What the libraries are told by environment variables, before they are imported.

In: the process's environment. Out: the same, with our defaults where the user set nothing.
"""

from __future__ import annotations

import importlib
import importlib.metadata
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

from trainer.exits import OutOfMemoryError, StoppedError, TemporaryError, UsageError
from trainer.hosts import Peers
from trainer.hosts.peers import PING_SECONDS, SILENCE_SECONDS
from trainer.storage.temporary import temporary_parent

TENSORFLOW_MODULES = ("tensorflow", "keras", "tensorboard")
"""What an extra brings and plain `pip install .` doesn't."""
_DISTRIBUTIONS = ("tensorflow", "tensorflow-cpu", "tensorflow-tpu")
_OLDEST = (2, 20)

_UNUSED_BY_KERAS = ("IPython", "matplotlib", "sklearn")
"""Packages that Keras imports where they are installed, for features that are not used here."""

_LEAST_ADDRESSES = 2 << 30
"""Bytes of address space; the demo takes more on two cores, and every thread takes some."""

_STDERR = 2
_stderr = _STDERR
"""Where the terminal or the log is; while TensorFlow is imported it isn't at 2."""

_DEFAULTS = {
    # TensorFlow's C++ side logs dozens of lines at import unless it is told before.
    "TF_CPP_MIN_LOG_LEVEL": "2",
    # The bucket client asks for each bucket's metadata, in a thread of its own, to label traces that
    # nobody collects: a request that may need a right which the user doesn't have.
    "DISABLE_GCS_PYTHON_CLIENT_OTEL_BUCKET_METADATA": "true",
}
# TensorFlow uses oneDNN's convolutions by itself only on CPUs with AVX512; with AVX2 alone they were
# faster too, by 45% for a residual network on an AMD EPYC.
_X86_DEFAULTS = {"TF_ENABLE_ONEDNN_OPTS": "1"}


def prepare_libraries() -> None:
    """Set the defaults; call it before TensorFlow is imported, which reads its own once."""
    defaults = _DEFAULTS | (_X86_DEFAULTS if platform.machine() == "x86_64" else {})
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    # Not a default: with another backend, as a notebook or ~/.keras may ask for, nothing here works.
    os.environ["KERAS_BACKEND"] = "tensorflow"


def require_tensorflow() -> None:
    """Raise ModuleNotFoundError if what training needs of an extra isn't installed; imports nothing.

    And UsageError for a TensorFlow, which a notebook or an image brought, that is too old.
    """
    for name in TENSORFLOW_MODULES:
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(f"no module {name}", name=name)
    for name in _DISTRIBUTIONS:
        with suppress(importlib.metadata.PackageNotFoundError):
            version = importlib.metadata.version(name) or ""
            numbers = tuple(map(int, re.findall(r"\d+", version)[:2]))
            if numbers and numbers < _OLDEST:
                raise UsageError(
                    f"TensorFlow {_OLDEST[0]}.{_OLDEST[1]} or newer is needed; `pip install '.[cpu]'`, gpu "
                    f"or tpu, brings it. Received: {name} {version}"
                )


@contextmanager
def memory_explained(advice: str) -> Iterator[None]:
    """Turn the end of the memory, as TensorFlow or Python tell it, into an OutOfMemoryError."""
    try:
        yield
    except Exception as error:
        is_tensorflow = type(error).__name__ == "ResourceExhaustedError"
        if not (is_tensorflow or isinstance(error, MemoryError)):
            raise
        raise OutOfMemoryError(
            f"The memory does not suffice; {advice}. Received: {_shortage(error)}"
        ) from None


def _shortage(error: Exception) -> str:
    """Return the line that says what didn't fit; TensorFlow's first one may only say where."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no more memory"]
    return next((line for line in lines if "OOM" in line or "memory" in line.lower()), lines[0])[:200]


@contextmanager
def peers_explained(peers: Peers) -> Iterator[None]:
    """Turn what TensorFlow says of a sum that could not be made into what became of the other process."""
    try:
        yield
    except Exception as error:
        kinds = {kind.__name__ for kind in type(error).__mro__}
        if peers.place.count == 1 or "OpError" not in kinds or "ResourceExhaustedError" in kinds:
            raise
        # TensorFlow may notice first; the peers know who it is once that one was silent for long enough.
        until = time.monotonic() + SILENCE_SECONDS + PING_SECONDS
        while time.monotonic() < until:
            peers.require()
            time.sleep(0.1)
        raise TemporaryError(
            "The processes of the run lost each other; started again they go on from the last checkpoint. "
            f"Received: {str(error).splitlines()[0][:300]}"
        ) from None


def _require_address_space() -> None:
    """Raise OutOfMemoryError for an address space that is too small for TensorFlow; warn of any other limit.

    Past the limit its threads abort (exit code 134) or fault (139), and no handler here runs any more.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return
    received = f"ulimit -v {limit >> 10}"
    if limit < _LEAST_ADDRESSES:
        raise OutOfMemoryError(
            f"The address space of this process is limited to less than the {_LEAST_ADDRESSES >> 30} GiB "
            f"that TensorFlow takes; lift it with `ulimit -v unlimited`. Received: {received}"
        )
    write_last_words(
        f"note: the address space of this process is limited ({received}). If it is used up, the process "
        "ends with 134 or 139 and without a message, which means out of memory.\n"
    )


def import_tensorflow() -> None:
    """Import TensorFlow without what it says when oneDNN is on, which no log level holds back.

    Keras, which it imports, does without the packages that are not used here.
    When the import fails, what it said is shown. Raises ModuleNotFoundError, UsageError, OutOfMemoryError,
    TemporaryError.
    """
    global _stderr
    prepare_libraries()
    parent = temporary_parent()
    _require_address_space()
    sys.stderr.flush()
    kept = os.dup(_STDERR)
    with tempfile.TemporaryFile(dir=parent) as said:
        os.dup2(said.fileno(), _STDERR)
        _stderr = kept
        try:
            with _hidden(*_UNUSED_BY_KERAS):
                importlib.import_module("tensorflow")
        except StoppedError:
            raise  # it did not fail
        except BaseException:
            said.seek(0)
            os.write(kept, said.read())
            raise
        finally:
            os.dup2(kept, _STDERR)
            _stderr = _STDERR
            os.close(kept)


@contextmanager
def _hidden(*names: str) -> Iterator[None]:
    """Let imports of packages fail that are not imported yet: of Keras' they are a third of its time."""
    names = tuple(name for name in names if name not in sys.modules)
    sys.modules.update(dict.fromkeys(names))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]


def write_last_words(text: str) -> None:
    """Write to standard error from another thread than the main one, at any time; fails in silence."""
    with suppress(OSError):
        os.write(_stderr, text.encode())
