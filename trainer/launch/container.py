"""Runs in containers on a Docker engine, and its client: request body, start, state, logs and stop.

Local folders are mounted at the same paths in the container, so that the spec is valid there unchanged.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import requests
from docker import APIClient
from docker.errors import APIError, DockerException, NotFound
from docker.utils import kwargs_from_env
from pydantic import Field, StrictInt
from pydantic.alias_generators import to_pascal

from trainer.data.readers.import_files import SUFFIXES as IMPORT_SUFFIXES
from trainer.errors import StoppedError, TemporaryError, TrainerError, UsageError
from trainer.launch.plan import END_SECONDS, RUN_NAME, SPEC, JobPlan, locations_of
from trainer.launch.responses import Response, read_response
from trainer.launch.state import State, describe_exit_code
from trainer.storage.store import is_bucket, without_scheme

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


LABEL = "trainer.run"
"""Label of every submitted container; its value is the run's name."""
_CREDENTIALS = "/credentials.json"
_SHARED_MEMORY_BYTES = 2 << 30
_WORDS = {"created": "waiting", "running": "running", "paused": "suspended", "restarting": "waiting"}
_CONFLICT = 409


class _State(EngineResponse):
    status: str
    exit_code: StrictInt
    error: str = ""
    is_out_of_memory: bool = Field(False, alias="OOMKilled")
    started_at: str
    finished_at: str


class _Config(EngineResponse):
    labels: dict[str, str] | None = None
    env: list[str] | None = None
    stop_timeout: StrictInt | None = None


class _InspectedContainer(EngineResponse):
    id: str
    state: _State
    config: _Config


class _ConfigWithTerminal(EngineResponse):
    tty: bool


class _ContainerWithTerminal(EngineResponse):
    config: _ConfigWithTerminal


class _Created(EngineResponse):
    id: str


class _ListedContainer(EngineResponse):
    names: list[str] = Field(min_length=1)


class _ContainerList(EngineResponse):
    containers: list[_ListedContainer]


@dataclass(frozen=True)
class ClientHost:
    """Properties of the submitting machine."""

    user: str
    """UID:GID that owns the files of the run."""
    credentials: Path | None = None
    """Google Cloud credentials file, if the machine has one."""
    network: str | None = None
    environment: tuple[tuple[str, str], ...] = ()
    """Additional environment variables, as (name, value)."""


def container_of(plan: JobPlan, host: ClientHost) -> dict[str, Any]:
    """Return the body of the request that creates the container of `plan`."""
    environment = {SPEC: plan.spec_text, RUN_NAME: plan.name, **dict(host.environment)}
    if _needs_credentials(plan, host):
        environment["GOOGLE_APPLICATION_CREDENTIALS"] = _CREDENTIALS
    count = plan.accelerator.count if plan.accelerator.kind == "gpu" else 0
    gpus = [{"Driver": "", "Count": count, "Capabilities": [["gpu"]]}] if count else []
    return {
        "Image": plan.image,
        "Cmd": plan.arguments,
        "User": host.user,
        "Env": [f"{name}={value}" for name, value in environment.items()],
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


def _mounts(plan: JobPlan, host: ClientHost) -> list[dict[str, Any]]:
    mounts = []
    for location, is_written in locations_of(plan.spec).items():
        path = PurePosixPath(without_scheme(location))
        # The rows of an import file refer to images in its folder.
        folder = str(path.parent if path.suffix.lower() in IMPORT_SUFFIXES else path)
        if path.is_absolute():
            mounts.append(_bind_mount(folder, folder, is_read_only=not is_written))
    if _needs_credentials(plan, host):
        mounts.append(_bind_mount(str(host.credentials), _CREDENTIALS, is_read_only=True))
    return mounts


def _needs_credentials(plan: JobPlan, host: ClientHost) -> bool:
    """Return whether to mount Google credentials: only if the run uses a bucket."""
    uses_bucket = any(map(is_bucket, locations_of(plan.spec)))
    return uses_bucket and host.credentials is not None


def _bind_mount(source: str, target: str, is_read_only: bool = False) -> dict[str, Any]:
    return {"Type": "bind", "Source": source, "Target": target, "ReadOnly": is_read_only}


def start_container(client: Engine, name: str, body: dict[str, Any]) -> None:
    """Create and start the container; remove it if it cannot start. Raises UsageError, TemporaryError."""
    try:
        with translate_engine_errors():
            client.inspect_image(body["Image"])
    except NotFound:
        raise UsageError(
            "The Docker engine does not have this image.",
            "Build it with `trainer image build`, or fetch it with `docker pull`.",
            body["Image"],
        ) from None
    _remove_ended(client, name)
    with _translate_start_errors(body):
        response = client.create_container_from_config(body, name)
    container_id = read_response(_Created, response, SERVICE)["Id"]
    try:
        with _translate_start_errors(body):
            client.start(container_id)
    except BaseException:
        with suppress(TrainerError, NotFound), translate_engine_errors():
            client.remove_container(container_id, force=True)
        raise


@contextmanager
def _translate_start_errors(body: Mapping[str, Any]) -> Iterator[None]:
    """Translate errors of the engine while a container of `body` is created or started."""
    with translate_engine_errors():
        try:
            yield
        except APIError as error:
            raise _start_error(error, body) from None


def _start_error(error: APIError, body: Mapping[str, Any]) -> UsageError:
    message = engine_message(error)
    if error.status_code == _CONFLICT:
        return UsageError(
            "A container of this name already exists.", "Choose another name with --run-name.", message
        )
    if is_folder_missing(message):
        return UsageError(
            "A folder of the spec does not exist on the machine of the Docker engine.",
            "Create it there, or use gs:// URIs.",
            message,
        )
    if "DeviceRequests" in body["HostConfig"] and is_gpu_missing(message):
        return UsageError(
            "The Docker engine has no GPU support for containers.",
            "Install the NVIDIA Container Toolkit on its machine, or use --accelerator cpu.",
            message,
        )
    return refused(error)


def _remove_ended(client: Engine, name: str) -> None:
    """Remove an ended container of this name and label; the next container resumes its run."""
    container = _find(client, name)
    if container is not None and container["State"]["Status"] in ("exited", "dead"):
        with translate_engine_errors():
            client.remove_container(container["Id"])


def container_state(client: Engine, name: str) -> State:
    """Return the state of a container. Raises UsageError if there is none of this name."""
    state = _inspect(client, name)["State"]
    code = int(state["ExitCode"])
    lines = [state["Error"]] if state.get("Error") else []
    if state.get("OOMKilled"):
        lines.append("out of memory: use a smaller batch, or give the engine more memory")
    if state["Status"] in _WORDS:
        started = str(state["StartedAt"])[:16]
        since = "" if started.startswith("0001") else f"since {started}"
        return State(name, _WORDS[state["Status"]], since, tuple(lines))
    if code:
        lines.append(describe_exit_code(code))
    word = "failed" if code else "finished"
    if code == StoppedError.exit_code:
        word = "stopped"
    return State(name, word, f"at {state['FinishedAt'][:16]}", tuple(lines))


def container_environment(client: Engine, name: str) -> dict[str, str]:
    """Return the environment variables of a container."""
    pairs = (variable.partition("=") for variable in _inspect(client, name)["Config"].get("Env") or ())
    return {variable: value for variable, _, value in pairs}


def container_lines(client: Engine, name: str, is_following: bool) -> Iterator[bytes]:
    """Yield the output of a container as it arrives."""
    # The client library reads this field of the container without a check.
    read_response(_ContainerWithTerminal, _inspect(client, name), SERVICE)
    with translate_engine_errors():
        yield from client.logs(name, stream=True, follow=is_following)


def stop_container(client: Engine, name: str) -> None:
    """Stop a container gracefully and wait until it has saved a checkpoint; its log is kept."""
    seconds = int(_inspect(client, name)["Config"].get("StopTimeout") or 0)
    with translate_engine_errors():
        client.stop(name, timeout=seconds)


def list_containers(client: Engine) -> list[str]:
    """Return the names of all submitted containers, newest first."""
    with translate_engine_errors():
        response = client.containers(all=True, filters={"label": LABEL})
    containers = read_response(_ContainerList, {"Containers": response}, SERVICE)["Containers"]
    return [container["Names"][0].lstrip("/") for container in containers]


def _inspect(client: Engine, name: str) -> dict[str, Any]:
    """Return a submitted container. Raises UsageError if there is none of this name."""
    if (container := _find(client, name)) is None:
        raise UsageError("There is no job of this name.", "List the jobs with `trainer list docker`.", name)
    return container


def _find(client: Engine, name: str) -> dict[str, Any] | None:
    """Return a submitted container, None if there is none of this name."""
    try:
        with translate_engine_errors():
            response = client.inspect_container(name)
    except NotFound:
        return None
    container = read_response(_InspectedContainer, response, SERVICE)
    return container if LABEL in (container["Config"].get("Labels") or {}) else None
