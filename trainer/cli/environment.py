"""Environment variables and folders that the commands read, and the clients of cloud services."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from trainer.errors import UsageError
from trainer.sanitize import shown_address

if TYPE_CHECKING:
    from trainer.launch.container import Engine
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
    from trainer.launch.container import open_engine

    try:
        return open_engine()
    except UsageError:
        return None


# The first is set by the manifests of `trainer submit`, the second by Vertex AI.
_JOB_NAMES = ("TRAINER_RUN_NAME", "CLOUD_ML_JOB_ID")
_JOB_SPEC = "TRAINER_SPEC"


def cache_folder() -> Path:
    """Return the folder for downloads and unpacked archives, below the XDG cache directory."""
    base = os.environ.get("XDG_CACHE_HOME")
    if base:
        return Path(base) / "trainer"
    try:
        return Path.home() / ".cache" / "trainer"
    except RuntimeError:
        # For example in a container whose user has no passwd entry.
        raise UsageError(
            "There is no home folder for the cache.", "Set XDG_CACHE_HOME to a folder.", received="no HOME"
        ) from None


def job_name() -> str | None:
    """Return the job name from the environment, so that each restart finds the same run, or None."""
    return next((os.environ[name] for name in _JOB_NAMES if os.environ.get(name)), None)


def job_spec(spec_path: str | None, recipe: str | None) -> str | None:
    """Return the YAML spec of a submitted job from the environment, unless a file or recipe is set."""
    return None if spec_path or recipe else os.environ.get(_JOB_SPEC)


def print_emulator() -> None:
    """Print a note if an emulator replaces Cloud Storage. Raises UsageError if its URL is invalid."""
    address = os.environ.get(EMULATOR)
    if not address:
        return
    if not address.lower().startswith(("http://", "https://")):
        raise UsageError(
            f"{EMULATOR} is not a URL.",
            "Set it to a URL such as http://localhost:9023.",
            received=f"{shown_address(address)!r}",
        )
    click.echo(
        f"note       {EMULATOR} is set: gs:// uses {shown_address(address)} instead of Cloud Storage",
        err=True,
    )
