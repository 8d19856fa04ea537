"""Runs in containers on a Docker engine: request body, start, state, logs and stop.

Local folders are mounted at the same paths in the container, so that the spec is valid there unchanged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import requests
from docker.errors import APIError, DockerException, NotFound

from trainer.data.readers.import_files import SUFFIXES as IMPORT_SUFFIXES
from trainer.errors import StoppedError, TemporaryError, UsageError
from trainer.launch.engine_errors import engine_message, is_folder_missing, is_gpu_missing
from trainer.launch.plan import END_SECONDS, RUN_NAME, SPEC, JobPlan, places_of
from trainer.launch.state import State, explain_code
from trainer.storage.store import is_bucket, without_scheme

Engine = Any
"""A docker.APIClient, which has only partial type annotations."""
LABEL = "trainer.run"
"""Label of every submitted container; its value is the run's name."""
_CREDENTIALS = "/credentials.json"
_SHARED_MEMORY_BYTES = 2 << 30
_WORDS = {"created": "waiting", "running": "running", "paused": "suspended", "restarting": "waiting"}
_CONFLICT = 409
_SERVER_ERROR = 500


@dataclass(frozen=True)
class Host:
    """Properties of the submitting machine."""

    user: str
    """UID:GID that owns the files of the run."""
    credentials: Path | None = None
    """Google Cloud credentials file, if the machine has one."""
    network: str | None = None
    environment: tuple[tuple[str, str], ...] = ()
    """Additional environment variables, as (name, value)."""


def container_of(plan: JobPlan, host: Host) -> dict[str, Any]:
    """Return the body of the request that creates the container of `plan`."""
    given = {SPEC: plan.spec_text, RUN_NAME: plan.name, **dict(host.environment)}
    if _needs_credentials(plan, host):
        given["GOOGLE_APPLICATION_CREDENTIALS"] = _CREDENTIALS
    wanted = plan.accelerator
    gpus = [{"Driver": "", "Count": wanted.count, "Capabilities": [["gpu"]]}] if wanted.kind == "gpu" else []
    return {
        "Image": plan.image,
        "Cmd": plan.arguments,
        "User": host.user,
        "Env": [f"{name}={value}" for name, value in given.items()],
        "Labels": {LABEL: plan.name},
        "StopTimeout": round(plan.spec.train.grace_seconds) + END_SECONDS,
        "HostConfig": {
            "Mounts": _mounts(plan, host),
            "ReadonlyRootfs": True,
            "Tmpfs": {"/tmp": "rw,exec"},
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges"],
            "ShmSize": _SHARED_MEMORY_BYTES,
            **({"DeviceRequests": gpus} if gpus else {}),
            **({"NetworkMode": host.network} if host.network else {}),
        },
    }


def _mounts(plan: JobPlan, host: Host) -> list[dict[str, Any]]:
    mounts = []
    for place, is_written in places_of(plan.spec).items():
        path = PurePosixPath(without_scheme(place))
        # The rows of an import file refer to images in its folder.
        folder = str(path.parent if path.suffix.lower() in IMPORT_SUFFIXES else path)
        if path.is_absolute():
            mounts.append(_bind(folder, folder, is_read_only=not is_written))
    if _needs_credentials(plan, host):
        mounts.append(_bind(str(host.credentials), _CREDENTIALS, is_read_only=True))
    return mounts


def _needs_credentials(plan: JobPlan, host: Host) -> bool:
    """Return whether to mount Google credentials: only if the run uses a bucket."""
    is_remote = any(map(is_bucket, places_of(plan.spec)))
    return is_remote and host.credentials is not None


def _bind(source: str, target: str, is_read_only: bool = False) -> dict[str, Any]:
    return {"Type": "bind", "Source": source, "Target": target, "ReadOnly": is_read_only}


def start_container(client: Engine, name: str, body: dict[str, Any]) -> None:
    """Create and start the container; remove it if it cannot start. Raises UsageError, TemporaryError."""
    try:
        with _answering():
            client.inspect_image(body["Image"])
    except NotFound:
        raise UsageError(
            "The engine doesn't have this image; `trainer image build` makes it, `docker pull` fetches one.",
            received=f"{body['Image']}",
        ) from None
    _make_room(client, name)
    try:
        made = client.create_container_from_config(body, name)["Id"]
    except APIError as error:
        raise _not_started(error, body) from None
    try:
        client.start(made)
    except BaseException as error:
        client.remove_container(made, force=True)
        if isinstance(error, APIError):
            raise _not_started(error, body) from None
        raise


def _make_room(client: Engine, name: str) -> None:
    """Remove an ended container of this name and label; the next container resumes its run."""
    try:
        found = _inspected(client, name)
    except UsageError:
        return
    if found["State"]["Status"] in ("exited", "dead"):
        with _answering():
            client.remove_container(found["Id"])


def container_state(client: Engine, name: str) -> State:
    """Return the state of a container. Raises UsageError if there is none of this name."""
    inspected = _inspected(client, name)
    found, code = inspected["State"], int(inspected["State"]["ExitCode"])
    lines = [each for each in (found.get("Error"),) if each]
    if found.get("OOMKilled"):
        lines.append("out of memory: a smaller batch, or more memory for the engine")
    if found["Status"] in _WORDS:
        began = str(found["StartedAt"])[:16]
        since = "" if began.startswith("0001") else f"since {began}"
        return State(name, _WORDS[found["Status"]], since, tuple(lines))
    if code:
        lines.append(explain_code(code))
    if code == StoppedError.exit_code:
        return State(name, "ended on request", f"at {found['FinishedAt'][:16]}", tuple(lines))
    return State(name, "failed" if code else "finished", f"at {found['FinishedAt'][:16]}", tuple(lines))


def container_environment(client: Engine, name: str) -> dict[str, str]:
    """Return the environment variables of a container."""
    pairs = (each.partition("=") for each in _inspected(client, name)["Config"]["Env"])
    return {name: value for name, _, value in pairs}


def container_lines(client: Engine, name: str, is_following: bool) -> Iterator[bytes]:
    """Yield the output of a container as it arrives."""
    _inspected(client, name)
    with _answering():
        yield from client.logs(name, stream=True, follow=is_following)


def stop_container(client: Engine, name: str) -> None:
    """Stop a container gracefully and wait until it has saved a checkpoint; its log is kept."""
    seconds = int(_inspected(client, name)["Config"].get("StopTimeout") or 0)
    with _answering():
        client.stop(name, timeout=seconds)


def list_containers(client: Engine) -> list[str]:
    """Return the names of all submitted containers, newest first."""
    with _answering():
        found = client.containers(all=True, filters={"label": LABEL})
    return [each["Names"][0].lstrip("/") for each in found]


@contextmanager
def _answering() -> Iterator[None]:
    """Translate errors of the engine and the connection to it; NotFound passes."""
    try:
        yield
    except NotFound:
        raise
    except APIError as error:
        if error.status_code is not None and error.status_code < _SERVER_ERROR:
            raise _refused(error) from None
        raise TemporaryError("The Docker engine can't do it now.", received=engine_message(error)) from None
    except (DockerException, requests.RequestException) as error:
        raise TemporaryError(
            "The Docker engine doesn't do it; try again.", received=engine_message(error)
        ) from None


def _inspected(client: Engine, name: str) -> dict[str, Any]:
    try:
        with _answering():
            found: dict[str, Any] = client.inspect_container(name)
    except NotFound:
        found = {}
    if LABEL not in (found.get("Config", {}).get("Labels") or {}):
        raise UsageError("There is no such job; `trainer list docker` shows them.", received=name)
    return found


def _not_started(error: APIError, body: Mapping[str, Any]) -> UsageError:
    """Return the error for a container of `body` that could not be created or started."""
    message = engine_message(error)
    if error.status_code == _CONFLICT:
        return UsageError("There is a container of this name; give another --run-name.", received=message)
    if is_folder_missing(message):
        return UsageError(
            "A folder of the spec isn't on the engine's machine; make it, or use gs:// addresses.",
            received=message,
        )
    if "DeviceRequests" in body["HostConfig"] and is_gpu_missing(message):
        return UsageError(
            "The engine has no GPU for containers; install NVIDIA's container toolkit there, or take "
            "--accelerator cpu.",
            received=message,
        )
    return _refused(error)


def _refused(error: APIError) -> UsageError:
    return UsageError("The engine refuses it.", received=engine_message(error))
