"""The errors of a Docker engine: by status code where it has one, else by its text without users' names.

An engine and a registry quote the names of images, folders and jobs in their messages. A word is searched for
only in what is left without them.
"""

from __future__ import annotations

import re

_SHOWN = 300
_REFUSED = ("denied", "unauthorized", "authentication", "no basic auth credentials", "forbidden")
_QUOTED = re.compile(r"""https?://\S+|"[^"]*"|'[^']*'|`[^`]*`""")
_NO_GPU = re.compile(r"could not select device driver|nvidia", re.IGNORECASE)
_NO_FOLDER = re.compile(r'invalid mount config for type "bind": bind source path does not exist: ')


def engine_message(error: Exception) -> str:
    """Return the message of the engine, or of the library that calls it, in one line."""
    return " ".join(str(getattr(error, "explanation", None) or error).split())[:_SHOWN]


def is_access_refused(message: str, image: str) -> bool:
    """Return whether a registry refused the credentials for `image`; a push has no status code."""
    words = _without_names(message, image).lower()
    return any(word in words for word in _REFUSED)


def is_gpu_missing(message: str) -> bool:
    """Return whether an engine that was asked for GPUs has none for containers."""
    return _NO_GPU.match(message) is not None or _NO_GPU.search(_without_names(message)) is not None


def is_folder_missing(message: str) -> bool:
    """Return whether a folder to mount does not exist on the machine of the engine."""
    return _NO_FOLDER.match(message) is not None


def _without_names(message: str, image: str = "") -> str:
    """Return `message` without URLs, quoted words, and the parts of the name of `image`."""
    repository = image.rpartition(":")[0]
    host, _, path = repository.partition("/")
    text = _QUOTED.sub("", message)
    for name in (image, repository, path, host, host.partition(":")[0]):
        text = re.sub(rf"(?<![\w.-]){re.escape(name)}(?![\w-])", "", text) if name else text
    return text
