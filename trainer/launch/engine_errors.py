"""Classification of Docker engine errors: by status code if there is one, else by message.

Engines and registries quote the names of images, folders and jobs in their messages. Keywords are searched
only in the message without these names.
"""

from __future__ import annotations

import re

_SHOWN = 300
_REFUSED = ("denied", "unauthorized", "authentication", "no basic auth credentials", "forbidden")
_QUOTED = re.compile(r"""https?://\S+|"[^"]*"|'[^']*'|`[^`]*`""")
_NO_GPU = re.compile(r"could not select device driver|nvidia", re.IGNORECASE)
_NO_FOLDER = re.compile(r'invalid mount config for type "bind": bind source path does not exist: ')


def engine_message(error: Exception) -> str:
    """Return the message of the engine, or of the client library, on one line."""
    return " ".join(str(getattr(error, "explanation", None) or error).split())[:_SHOWN]


def is_access_refused(message: str, image: str) -> bool:
    """Return whether a registry refused the credentials for `image`; a push error has no status code."""
    words = _without_names(message, image).lower()
    return any(word in words for word in _REFUSED)


def is_gpu_missing(message: str) -> bool:
    """Return whether an engine failed because it has no GPU support for containers."""
    return _NO_GPU.match(message) is not None or _NO_GPU.search(_without_names(message)) is not None


def is_folder_missing(message: str) -> bool:
    """Return whether a folder to mount does not exist on the engine's machine."""
    return _NO_FOLDER.match(message) is not None


def _without_names(message: str, image: str = "") -> str:
    """Return `message` without URLs, quoted words, and the parts of the name of `image`."""
    repository = image.rpartition(":")[0]
    host, _, path = repository.partition("/")
    text = _QUOTED.sub("", message)
    for name in (image, repository, path, host, host.partition(":")[0]):
        text = re.sub(rf"(?<![\w.-]){re.escape(name)}(?![\w-])", "", text) if name else text
    return text
