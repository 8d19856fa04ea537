"""Clients for Google Cloud and the container engine, and error translation for unexpected responses."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from trainer.errors import TemporaryError, UsageError

if TYPE_CHECKING:
    from trainer.launch.google import Google
    from trainer.launch.image import Engine
    from trainer.launch.vertex import Project

EMULATOR = "STORAGE_EMULATOR_HOST"
"""Environment variable of the Cloud Storage client with the URL of an emulator."""


def find_google(url: str) -> Google | None:
    """Return a client for `url`, or None if this machine has no credentials."""
    from trainer.launch.google import Google

    try:
        return Google(url)
    except UsageError:
        return None


def storage_url(project: Project | None = None) -> str:
    """Return the URL of the emulator, the project's endpoint, or Cloud Storage."""
    endpoint = project.endpoint if project else None
    return (os.environ.get(EMULATOR) or endpoint or "https://storage.googleapis.com").rstrip("/")


def find_engine() -> Engine | None:
    """Return a client for the container engine, or None if there is no engine."""
    from trainer.launch.image import open_engine

    try:
        return open_engine()
    except UsageError:
        return None


@contextmanager
def understood(place: str) -> Iterator[None]:
    """Translate the exceptions that a malformed response of `place` causes into TemporaryError."""
    try:
        yield
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise TemporaryError(
            f"The answer of {place} is not understood; see what is between, as a proxy, or another version.",
            received=f"{type(error).__name__} {str(error)[:100]}",
        ) from None
