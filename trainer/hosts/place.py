"""The environment of a cluster to a place in it.

In: environment variables, as Vertex AI, Kubeflow or an Indexed Job of Kubernetes set them. Out: a
`Place`: the addresses of all processes of the run, and which of them this one is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainer.exits import UsageError

TF_CONFIG = "TF_CONFIG"
_CLUSTER_SPEC = "CLUSTER_SPEC"
_JOB_INDEX = "JOB_COMPLETION_INDEX"
WORKERS = "TRAINER_WORKERS"
"""How many pods an Indexed Job has; the manifest sets it."""
SERVICE = "TRAINER_SERVICE"
"""The headless service that gives the pods of an Indexed Job their names."""
PROCESS_VARIABLES = (TF_CONFIG, _CLUSTER_SPEC, _JOB_INDEX, WORKERS, SERVICE)
"""All environment variables that make a process one of several."""
PORT = 2222
"""Of TensorFlow, where an Indexed Job's pods find each other."""
_PORTS_APART = 1000
"""Where nothing says which other port is open, the processes talk that much above the chief's."""
_HIGHEST_PORT = 65535
_CHIEFS = ("chief", "master")
_HOST = r"[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.%]+\]|[0-9A-Fa-f:.]+"
"""A name, an IPv4 address, or an IPv6 address with brackets or without."""


@dataclass(frozen=True)
class Place:
    """One process among those of a run."""

    addresses: tuple[str, ...] = ("localhost:0",)
    """HOST:PORT of each process, where TensorFlow listens; the first is the chief."""
    index: int = 0
    control: str = ""
    """HOST:PORT where the chief hears the others; empty for one process alone."""

    @property
    def count(self) -> int:
        """How many processes there are."""
        return len(self.addresses)

    @property
    def is_chief(self) -> bool:
        """Whether this process writes what the run leaves behind."""
        return self.index == 0

    def name(self, index: int) -> str:
        """Return what to call a process in a message."""
        return f"worker {index} ({self.addresses[index]})"


def read_place(environment: Mapping[str, str], host_name: str) -> Place:
    """Return the place that `environment` gives the process on the host `host_name`.

    TF_CONFIG counts first, then an Indexed Job's variables; with neither the process is alone.
    Raises UsageError for what can't be understood or isn't used here, as parameter servers.
    """
    if environment.get(TF_CONFIG, "").strip():
        return _from_tf_config(environment[TF_CONFIG], environment.get(_CLUSTER_SPEC, ""))
    if environment.get(WORKERS, "").strip():
        return _from_indexed_job(environment, host_name)
    return Place()


def read_share(environment: Mapping[str, str]) -> tuple[int, int]:
    """Return which part of a work that can be divided is this process's, and of how many parts.

    Of an Indexed Job's variables or TF_CONFIG; (0, 1) without either. Raises UsageError.
    """
    if environment.get(TF_CONFIG, "").strip():
        place = read_place(environment, "")
        return place.index, place.count
    count, index = (environment.get(name, "").strip() for name in (WORKERS, _JOB_INDEX))
    if not count:
        return 0, 1
    if not _is_number(count) or not _is_number(index) or int(index) >= int(count):
        raise UsageError(
            f"{WORKERS} is the number of pods of an Indexed Job, which sets {_JOB_INDEX} to 0 and up. "
            f"Received: {WORKERS}={count!r}, {_JOB_INDEX}={index!r}"
        )
    return int(index), int(count)


def _from_tf_config(text: str, cluster_spec: str) -> Place:
    config = _mapping(text, TF_CONFIG)
    cluster, task = (config.get(key) or {} for key in ("cluster", "task"))
    if not isinstance(cluster, dict) or not isinstance(task, dict):
        raise _refused("has a cluster and a task, each an object", text)
    jobs = {str(name): addresses for name, addresses in cluster.items() if addresses}
    for name, addresses in jobs.items():
        _require_used(name, text)
        if not isinstance(addresses, list) or not all(_is_address(each) for each in addresses):
            raise _refused(f"gives {name} as a list of HOST:PORT", text)
    if sum(len(jobs.get(name, ())) for name in _CHIEFS) > 1:
        raise _refused("has one chief at most", text)
    kind, index = str(task.get("type", "")), task.get("index", 0)
    if kind or jobs:
        _require_used(kind, text)
    if not jobs:
        return Place()
    names = [name for name in (*_CHIEFS, "worker") if name in jobs]
    addresses = tuple(address for name in names for address in jobs[name])
    if len(set(addresses)) < len(addresses):
        raise _refused("has another address for each process", text)
    if kind not in jobs or not _is_number(str(index)) or int(index) >= len(jobs[kind]):
        raise _refused("has a task that is one of its cluster", text)
    before = sum(len(jobs[name]) for name in names[: names.index(kind)])
    return _place(addresses, before + int(index), _open_port(cluster_spec))


def _from_indexed_job(environment: Mapping[str, str], host_name: str) -> Place:
    given = {name: environment.get(name, "").strip() for name in (WORKERS, SERVICE, _JOB_INDEX)}
    described = ", ".join(f"{name}={value!r}" for name, value in given.items())
    count, index = given[WORKERS], given[_JOB_INDEX]
    if not _is_number(count) or int(count) < 1:
        raise UsageError(f"{WORKERS} is a number of processes. Received: {described}")
    if int(count) == 1:
        return Place()
    job, _, ending = host_name.rpartition("-")
    if not _is_number(index) or int(index) >= int(count) or not given[SERVICE] or not job or ending != index:
        raise UsageError(
            f"{WORKERS} is for the pods of an Indexed Job, which are called JOB-INDEX, with {SERVICE} as "
            f"their subdomain and as many completions. Received: {described} on the host {host_name}"
        )
    addresses = tuple(f"{job}-{each}.{given[SERVICE]}:{PORT}" for each in range(int(count)))
    return _place(addresses, int(index), None)


def _place(addresses: tuple[str, ...], index: int, open_port: int | None) -> Place:
    if len(addresses) == 1:
        return Place()
    host, _, port = addresses[0].rpartition(":")
    above = int(port) + _PORTS_APART
    control = open_port or (above if above <= _HIGHEST_PORT else int(port) - _PORTS_APART)
    return Place(addresses, index, f"{host}:{control}")


def _open_port(cluster_spec: str) -> int | None:
    """Return the port beside TensorFlow's that Vertex AI keeps open between the machines of a job."""
    if not cluster_spec.strip():
        return None
    ports = _mapping(cluster_spec, _CLUSTER_SPEC).get("open_ports") or []
    first = str(ports[0]) if isinstance(ports, list) and ports else ""
    return int(first) if _is_port(first) else None


def _require_used(kind: str, text: str) -> None:
    others = {"ps": "parameter servers", "evaluator": "evaluators"}
    if kind in others:
        raise UsageError(
            f"{others[kind].capitalize()} have no part in this training: all processes train, and all "
            f"evaluate. Leave {kind} out of the cluster. Received: {TF_CONFIG}={text[:200]}"
        )
    if kind not in (*_CHIEFS, "worker"):
        raise _refused("knows of chief and worker only", text)


def _is_address(value: object) -> bool:
    host, _, port = str(value).rpartition(":")
    return isinstance(value, str) and bool(re.fullmatch(_HOST, host)) and _is_port(port)


def _is_port(text: str) -> bool:
    return _is_number(text) and 0 < int(text) <= _HIGHEST_PORT


def _is_number(text: str) -> bool:
    """Return whether `text` is a number as machines write it; isdigit() is true of a superscript two."""
    return re.fullmatch(r"[0-9]{1,9}", text) is not None


def _mapping(text: str, name: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{name} is not JSON: {error}. Received: {text[:200]}") from None
    if not isinstance(value, dict):
        raise UsageError(f"{name} is a JSON object. Received: {text[:200]}")
    return value


def _refused(rule: str, text: str) -> UsageError:
    return UsageError(
        f"{TF_CONFIG} {rule}; https://www.tensorflow.org/guide/distributed_training tells how it is made. "
        f"Received: {text[:200]}"
    )
