"""Clients for Google Cloud and the container engine."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from trainer.errors import UsageError

if TYPE_CHECKING:
    from trainer.launch.engine import Engine
    from trainer.launch.google import Google
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
    from trainer.launch.engine import open_engine

    try:
        return open_engine()
    except UsageError:
        return None
