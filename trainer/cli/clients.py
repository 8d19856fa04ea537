"""Clients of what is asked beyond this machine, where there are any, and what is said of odd answers.

In: the environment. Out: a client, or None where this machine has no way to ask.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from trainer.exits import TemporaryError, UsageError

if TYPE_CHECKING:
    from trainer.launch.google import Google
    from trainer.launch.image import Engine
    from trainer.launch.vertex import Project

EMULATOR = "STORAGE_EMULATOR_HOST"
"""The variable of the bucket client that names what stands for Cloud Storage."""


def find_google(url: str) -> Google | None:
    """Return a client for `url`, None where this machine has no credentials."""
    from trainer.launch.google import Google

    try:
        return Google(url)
    except UsageError:
        return None


def storage_url(project: Project | None = None) -> str:
    """Return the address of Cloud Storage, or of what stands for it."""
    endpoint = project.endpoint if project else None
    return (os.environ.get(EMULATOR) or endpoint or "https://storage.googleapis.com").rstrip("/")


def find_engine() -> Engine | None:
    """Return a client of the engine, None where there is none."""
    from trainer.launch.image import open_engine

    try:
        return open_engine()
    except UsageError:
        return None


@contextmanager
def understood(place: str) -> Iterator[None]:
    """Turn what a place answers, and what is not as it documents it, into an error in words."""
    try:
        yield
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise TemporaryError(
            f"The answer of {place} is not understood; see what is between, as a proxy, or another version. "
            f"Received: {type(error).__name__} {str(error)[:100]}"
        ) from None
