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
from typing import Literal

from docker.errors import APIError, DockerException, NotFound

from trainer.errors import TrainerError, UsageError
from trainer.launch.accelerators import Accelerator
from trainer.launch.engine_errors import engine_message
from trainer.launch.google import Google
from trainer.launch.image import Engine
from trainer.storage.store import GS, split_uri

WRITING = ("storage.objects.create", "storage.objects.delete", "storage.objects.get", "storage.objects.list")
READING = ("storage.objects.get", "storage.objects.list")
_BUCKET = r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]"
_SAID = 200


@dataclass(frozen=True)
class Check:
    """Result of one check."""

    name: str
    """One or two words."""
    state: Literal["ok", "wrong", "unknown"]
    said: str
    """The finding."""
    remedy: str = ""
    """The remedy; empty if none is needed."""


def require(check: Check) -> Check:
    """Return `check`. Raises UsageError if its state is "wrong"."""
    if check.state == "wrong":
        raise UsageError(f"{check.remedy[:1].upper()}{check.remedy[1:]}.", received=check.said)
    return check


def failed(name: str, error: TrainerError, remedy: str = "") -> Check:
    """Return a "wrong" check for `error`; the remedy defaults to the error's own advice."""
    advice, _, said = str(error).rpartition("Received: ")
    return Check(name, "wrong", said[:_SAID], remedy or advice.strip().rstrip("."))


def unknown(name: str, error: TrainerError) -> Check:
    """Return an "unknown" check for `error`."""
    return Check(name, "unknown", str(error).rpartition("Received: ")[2][:_SAID])


def check_bucket(uri: str, google: Google | None, url: str, permissions: Sequence[str] = WRITING) -> Check:
    """Check that the bucket of the gs:// URI exists and that the caller has `permissions` on it.

    `url` is the endpoint of Cloud Storage or of an emulator. Without `google` the result is "unknown".
    """
    bucket, _ = split_uri(uri)
    name = f"bucket {bucket}"
    if not re.fullmatch(_BUCKET, bucket):
        return Check(name, "wrong", uri, "a bucket's name has small letters, digits, -, _ and .")
    if google is None:
        return Check(
            name, "unknown", "not looked at: no credentials of Google Cloud here",
            "`gcloud auth application-default login` makes some",
        )  # fmt: skip
    there = f"{url}/storage/v1/b/{bucket}"
    try:
        found = google.find(f"{there}/iam/testPermissions", permissions=list(permissions))
        if found is None:
            if google.find(there) is None:
                remedy = f"`gcloud storage buckets create {GS}{bucket}` makes the bucket, or name another"
                return Check(name, "wrong", f"there is no bucket {GS}{bucket}", remedy)
            return Check(name, "unknown", "it is there; what may be done in it isn't told")
    except TrainerError as error:
        return unknown(name, error)
    lacking = sorted(set(permissions) - set(found.get("permissions", ())))
    if lacking:
        return Check(
            name, "unknown", f"it is there, and you lack {', '.join(lacking)}",
            "the job's account needs them: the role roles/storage.objectUser has all",
        )  # fmt: skip
    return Check(name, "ok", "it is there, and you may use it")


def check_registry_image(image: str, client: Engine | None) -> Check:
    """Check that the registry has `image`, through a Docker engine; the finding is its digest."""
    name = "image"
    if client is None:
        return Check(name, "unknown", "not looked for: no Docker engine here to ask with")
    try:
        found = client.inspect_distribution(image)
        return Check(name, "ok", str(found["Descriptor"]["digest"]))
    except (APIError, DockerException, OSError) as error:
        said = engine_message(error)[:_SAID]
        # Older engines have no status code for it; the phrase cannot be part of a name, as names have no
        # spaces.
        is_missing = isinstance(error, NotFound) or "manifest unknown" in said
    if is_missing:
        remedy = "`trainer image push` sends the image to its registry; --image names it"
        return Check(name, "wrong", f"{image}: {said}", remedy)
    return Check(name, "unknown", said, "`docker login` lets the engine see the registry")


def check_engine(client: Engine) -> Check:
    """Return a check with the version and the platform of the engine."""
    version = client.version()
    return Check("engine", "ok", f"Docker {version['Version']}, {version['Os']}/{version['Arch']}")


def check_engine_image(image: str, client: Engine) -> Check:
    """Check that the engine has `image`."""
    try:
        found = client.inspect_image(image)
    except NotFound as error:
        remedy = "`trainer image build` makes the image, `docker pull` fetches one; --image names it"
        return Check("image", "wrong", f"{image}: {engine_message(error)[:_SAID]}", remedy)
    except APIError as error:
        return Check("image", "unknown", engine_message(error)[:_SAID])
    return Check("image", "ok", f"{image}, {found['Size'] / 1e9:.2f} GB")


def check_engine_accelerator(wanted: Accelerator, client: Engine) -> Check:
    """Check that the engine can provide the accelerator to a container."""
    if wanted.kind == "cpu":
        return Check("accelerator", "ok", "none is asked for")
    if wanted.kind == "gpu" and "nvidia" in client.info().get("Runtimes", {}):
        return Check("accelerator", "ok", "the engine has NVIDIA's runtime")
    return Check(
        "accelerator", "wrong", f"the engine has no runtime for {wanted.name}",
        "install NVIDIA's container toolkit there for GPUs, or take --accelerator cpu",
    )  # fmt: skip


def check_folder(output: Path) -> Check:
    """Check that runs can be written to a local folder, which need not exist yet."""
    there = next(each for each in (output, *output.parents) if each.exists())
    if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
        return Check("output", "ok", str(output))
    return Check("output", "wrong", f"{there} can't be written", "give another folder with --output")
