"""Preflight checks of what a job needs: bucket, image, engine, output folder.

Each check returns a `Check`, with a remedy if something is wrong. What cannot be verified from this machine
is "unknown" and not an error, as the job has permissions of its own.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from docker.errors import NotFound
from pydantic import Field, StrictInt

from trainer.errors import TrainerError, UsageError
from trainer.launch.accelerators import Accelerator
from trainer.launch.engine import SERVICE, Engine, EngineResponse, engine_message, translate_engine_errors
from trainer.launch.google import Google, PermissionsResponse
from trainer.launch.responses import read_response
from trainer.storage.store import GS, split_uri

WRITING = ("storage.objects.create", "storage.objects.delete", "storage.objects.get", "storage.objects.list")
READING = ("storage.objects.get", "storage.objects.list")
_BUCKET = r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]"
_SHOWN = 200


@dataclass(frozen=True)
class Check:
    """Result of one check."""

    name: str
    """One or two words."""
    state: Literal["ok", "wrong", "unknown"]
    finding: str
    """A clause without a full stop."""
    remedy: str = ""
    """What to do, as a sentence; empty if nothing is needed."""


def require(check: Check) -> Check:
    """Return `check`. Raises UsageError if its state is "wrong"."""
    if check.state == "wrong":
        raise UsageError(f"{check.finding[:1].upper()}{check.finding[1:]}.", check.remedy, check.name)
    return check


def failed(name: str, error: TrainerError, remedy: str = "") -> Check:
    """Return a "wrong" check for `error`; the remedy defaults to that of the error."""
    return Check(name, "wrong", _finding_of(error), remedy or error.remedy)


def unknown(name: str, error: TrainerError) -> Check:
    """Return an "unknown" check for `error`."""
    return Check(name, "unknown", _finding_of(error))


def _finding_of(error: TrainerError) -> str:
    received = "" if error.received is None else f" ({error.received})"
    return f"{error.problem.rstrip('.')}{received}"[:_SHOWN]


def check_bucket(uri: str, google: Google | None, url: str, permissions: Sequence[str] = WRITING) -> Check:
    """Check that the bucket of the gs:// URI exists and that the caller has `permissions` on it.

    `url` is the endpoint of Cloud Storage or of an emulator. Without `google` the result is "unknown".
    """
    bucket, _ = split_uri(uri)
    name = f"bucket {bucket}"
    if not re.fullmatch(_BUCKET, bucket):
        return Check(
            name, "wrong", f"the bucket name {bucket!r} is invalid",
            "Use lowercase letters, digits, hyphens, underscores and dots.",
        )  # fmt: skip
    if google is None:
        return Check(
            name, "unknown", "not checked, because this machine has no Google Cloud credentials",
            "Create them with `gcloud auth application-default login`.",
        )  # fmt: skip
    bucket_url = f"{url}/storage/v1/b/{bucket}"
    try:
        response = google.find(
            f"{bucket_url}/iam/testPermissions", PermissionsResponse, permissions=list(permissions)
        )
        if response is None:
            if google.find(bucket_url) is None:
                return Check(
                    name, "wrong", f"the bucket {GS}{bucket} does not exist",
                    f"Create it with `gcloud storage buckets create {GS}{bucket}`, or check the name.",
                )  # fmt: skip
            return Check(name, "unknown", "it exists, but its permissions cannot be read")
    except TrainerError as error:
        return unknown(name, error)
    missing = sorted(set(permissions) - set(response.get("permissions", ())))
    if missing:
        return Check(
            name, "unknown", f"it exists, but you do not have {', '.join(missing)}",
            "The service account of the job needs these permissions; roles/storage.objectUser contains them.",
        )  # fmt: skip
    return Check(name, "ok", "it exists, and you have access")


class _Descriptor(EngineResponse):
    digest: str = Field(alias="digest")


class _Distribution(EngineResponse):
    descriptor: _Descriptor


class _EngineVersion(EngineResponse):
    version: str
    os: str
    arch: str


class _EngineImage(EngineResponse):
    size: StrictInt


class _Info(EngineResponse):
    runtimes: dict[str, Any] | None = None


def check_registry_image(image: str, client: Engine | None) -> Check:
    """Check that the registry has `image`, through a Docker engine; the finding is its digest."""
    name = "image"
    if client is None:
        return Check(name, "unknown", "not checked, because no Docker engine responds")
    try:
        with translate_engine_errors():
            response = client.inspect_distribution(image)
        return Check(name, "ok", str(read_response(_Distribution, response, SERVICE)["Descriptor"]["digest"]))
    except NotFound as error:
        return _missing_image(image, engine_message(error))
    except TrainerError as error:
        message = str(error.received)
    # Older engines have no status code for it; the phrase cannot be part of a name, as names have no spaces.
    if "manifest unknown" in message:
        return _missing_image(image, message)
    return Check(
        name, "unknown", message[:_SHOWN], "Log in to the registry with `docker login`, if it requires it."
    )


def _missing_image(image: str, message: str) -> Check:
    return Check(
        "image", "wrong", f"the registry does not have the image {image} ({message[:_SHOWN]})",
        "Push it with `trainer image push`, or choose another with --image.",
    )  # fmt: skip


def check_engine(client: Engine) -> Check:
    """Return a check with the version and the platform of the engine."""
    try:
        with translate_engine_errors():
            version = read_response(_EngineVersion, client.version(), SERVICE)
    except TrainerError as error:
        return failed("engine", error)
    return Check("engine", "ok", f"Docker {version['Version']}, {version['Os']}/{version['Arch']}")


def check_engine_image(image: str, client: Engine) -> Check:
    """Check that the engine has `image`."""
    try:
        with translate_engine_errors():
            response = read_response(_EngineImage, client.inspect_image(image), SERVICE)
    except NotFound as error:
        return Check(
            "image", "wrong", f"the Docker engine does not have {image} ({engine_message(error)[:_SHOWN]})",
            "Build it with `trainer image build`, pull it with `docker pull`, or choose another: --image.",
        )  # fmt: skip
    except TrainerError as error:
        return unknown("image", error)
    return Check("image", "ok", f"{image}, {response['Size'] / 1e9:.2f} GB")


def check_engine_accelerator(accelerator: Accelerator, client: Engine) -> Check:
    """Check that the engine can provide the accelerator to a container."""
    name = "accelerator"
    if accelerator.kind == "cpu":
        return Check(name, "ok", "none required")
    try:
        with translate_engine_errors():
            info = read_response(_Info, client.info(), SERVICE)
    except TrainerError as error:
        return unknown(name, error)
    if accelerator.kind == "gpu" and "nvidia" in (info.get("Runtimes") or {}):
        return Check(name, "ok", "the Docker engine has the NVIDIA runtime")
    return Check(
        name, "wrong", f"the Docker engine has no runtime for {accelerator.name}",
        "Install the NVIDIA Container Toolkit on its machine for GPUs, or use --accelerator cpu.",
    )  # fmt: skip


def check_folder(output: Path) -> Check:
    """Check that runs can be written to a local folder, which need not exist yet."""
    existing = next(folder for folder in (output, *output.parents) if folder.exists())
    if existing.is_dir() and os.access(existing, os.W_OK | os.X_OK):
        return Check("output", "ok", str(output))
    return Check("output", "wrong", f"{existing} is not writable", "Choose another folder with --output.")
