"""Connection to a Docker engine: client, validation of its responses, and error translation.

Engines and registries quote the names of images, folders and jobs in their messages. An error is classified
by its status code if there is one, else by keywords in the message without these names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import requests
from docker import APIClient
from docker.errors import APIError, DockerException, NotFound
from docker.utils import kwargs_from_env
from pydantic.alias_generators import to_pascal

from trainer.errors import TemporaryError, UsageError
from trainer.launch.responses import Response

Engine = Any
"""A docker.APIClient, which has only partial type annotations."""
SERVICE = "the Docker engine"
_SHOWN = 300
_SERVER_ERROR = 500
_REFUSED = ("denied", "unauthorized", "authentication", "no basic auth credentials", "forbidden")
_QUOTED = re.compile(r"""https?://\S+|"[^"]*"|'[^']*'|`[^`]*`""")
_NO_GPU = re.compile(r"could not select device driver|nvidia", re.IGNORECASE)
_NO_FOLDER = re.compile(r'invalid mount config for type "bind": bind source path does not exist: ')


def open_engine() -> Engine:
    """Return a client of the engine at DOCKER_HOST, else of the local engine. Raises UsageError."""
    try:
        client: Engine = APIClient(version="auto", **kwargs_from_env())
        client.ping()
    except (DockerException, OSError, ValueError) as error:
        raise UsageError(
            "No Docker engine responds.",
            "Start Docker, or set DOCKER_HOST to an engine that you have permission to use.",
            f"{str(error)[:200]}",
        ) from None
    return client


class EngineResponse(Response, alias_generator=to_pascal):
    """Base class of the schemas of the engine's responses."""


@contextmanager
def translate_engine_errors() -> Iterator[None]:
    """Translate errors of the engine and of the connection to UsageError or TemporaryError.

    `docker.errors.NotFound` passes, because its meaning depends on the request.
    """
    try:
        yield
    except NotFound:
        raise
    except APIError as error:
        if error.status_code is not None and error.status_code < _SERVER_ERROR:
            raise refused(error) from None
        raise TemporaryError(
            "The Docker engine failed.", "Check its log, then try again.", engine_message(error)
        ) from None
    except (DockerException, requests.RequestException) as error:
        raise TemporaryError(
            "The Docker engine does not respond.",
            "Check that it runs, then try again.",
            engine_message(error),
        ) from None


def refused(error: APIError) -> UsageError:
    """Return the error for a request that the engine rejects."""
    return UsageError("The Docker engine rejected the request.", received=engine_message(error))


def engine_message(error: Exception) -> str:
    """Return the message of the engine, or of the client library, on one line."""
    return " ".join(str(getattr(error, "explanation", None) or error).split())[:_SHOWN]


def is_access_refused(message: str, image: str) -> bool:
    """Return whether a registry refused the credentials for `image`; a push error has no status code."""
    text = _without_names(message, image).lower()
    return any(keyword in text for keyword in _REFUSED)


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
