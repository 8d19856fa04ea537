"""Process index and addresses of a run, from the environment of the cluster.

Supports the environment variables of Vertex AI and Kubeflow (TF_CONFIG) and of a Kubernetes Indexed Job.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from trainer.errors import UsageError

TF_CONFIG = "TF_CONFIG"
_CLUSTER_SPEC = "CLUSTER_SPEC"
_JOB_INDEX = "JOB_COMPLETION_INDEX"
WORKERS = "TRAINER_WORKERS"
"""Number of pods of the Indexed Job; set by the manifest."""
SERVICE = "TRAINER_SERVICE"
"""Headless Service that gives the pods of the Indexed Job their host names."""
GROUP_SECRET = "TRAINER_GROUP_SECRET"
"""Secret of the job, with which its processes prove to each other that they belong to it."""
PROCESS_VARIABLES = (TF_CONFIG, _CLUSTER_SPEC, _JOB_INDEX, WORKERS, SERVICE, GROUP_SECRET)
"""All environment variables that make a process part of a group."""
PORT = 2222
"""Port of TensorFlow on the pods of an Indexed Job."""
_PORT_OFFSET = 1000
"""Offset of the control port from the chief's TensorFlow port, unless CLUSTER_SPEC names an open port."""
_HIGHEST_PORT = 65535
_CHIEFS = ("chief", "master")
_HOST = r"[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.%]+\]|[0-9A-Fa-f:.]+"
"""A host name, an IPv4 address, or an IPv6 address with or without brackets."""


@dataclass(frozen=True)
class ProcessInfo:
    """Index of a process and the addresses of all processes of a run."""

    addresses: tuple[str, ...] = ("localhost:0",)
    """HOST:PORT of TensorFlow on each process; the first is the chief."""
    process_index: int = 0
    control: str = ""
    """HOST:PORT on which the chief accepts the other processes; empty for a single process."""
    secret: bytes = field(default=b"", repr=False)
    """Shared secret of the processes; empty if the environment has none."""

    @property
    def process_count(self) -> int:
        """Number of processes."""
        return len(self.addresses)

    @property
    def is_chief(self) -> bool:
        """Whether this process is the chief, which writes the outputs of the run."""
        return self.process_index == 0

    def name(self, index: int) -> str:
        """Return the name of a process for messages."""
        return f"worker {index} ({self.addresses[index]})"


def read_process_info(environment: Mapping[str, str], host_name: str) -> ProcessInfo:
    """Return the `ProcessInfo` that `environment` defines for the process on host `host_name`.

    TF_CONFIG takes precedence over the variables of an Indexed Job; without either, the process is a single
    one. Raises UsageError for invalid values and for unsupported roles such as parameter servers.
    """
    if environment.get(TF_CONFIG, "").strip():
        process = _from_tf_config(environment[TF_CONFIG], environment.get(_CLUSTER_SPEC, ""))
    elif environment.get(WORKERS, "").strip():
        process = _from_indexed_job(environment, host_name)
    else:
        return ProcessInfo()
    secret = environment.get(GROUP_SECRET, "").strip().encode("utf-8", "surrogateescape")
    return replace(process, secret=secret) if process.process_count > 1 else process


def read_share(environment: Mapping[str, str]) -> tuple[int, int]:
    """Return the index of this process and the number of processes, to divide work among them.

    They come from TF_CONFIG or the variables of an Indexed Job; (0, 1) without either. Raises UsageError.
    """
    if environment.get(TF_CONFIG, "").strip():
        process = read_process_info(environment, "")
        return process.process_index, process.process_count
    count, index = (environment.get(name, "").strip() for name in (WORKERS, _JOB_INDEX))
    if not count:
        return 0, 1
    if not _is_number(count) or not _is_number(index) or int(index) >= int(count):
        raise UsageError(
            f"{WORKERS} must be the number of pods of an Indexed Job, and {_JOB_INDEX} the index of the pod.",
            f"Submit the job with `trainer submit gke --workers N`, or unset {WORKERS}.",
            received=f"{WORKERS}={count!r}, {_JOB_INDEX}={index!r}",
        )
    return int(index), int(count)


def _from_tf_config(text: str, cluster_spec: str) -> ProcessInfo:
    config = _parse_object(text, TF_CONFIG)
    cluster, task = (config.get(key) or {} for key in ("cluster", "task"))
    if not isinstance(cluster, dict) or not isinstance(task, dict):
        raise _config_error("must contain the objects cluster and task", text)
    jobs = {str(name): addresses for name, addresses in cluster.items() if addresses}
    for name, addresses in jobs.items():
        _require_supported(name, text)
        if not isinstance(addresses, list) or not all(map(_is_address, addresses)):
            raise _config_error(f"must contain {name} as a list of HOST:PORT", text)
    if sum(len(jobs.get(name, ())) for name in _CHIEFS) > 1:
        raise _config_error("must contain at most one chief", text)
    kind, index = str(task.get("type", "")), task.get("index", 0)
    if kind or jobs:
        _require_supported(kind, text)
    if not jobs:
        return ProcessInfo()
    names = [name for name in (*_CHIEFS, "worker") if name in jobs]
    addresses = tuple(address for name in names for address in jobs[name])
    if len(set(addresses)) < len(addresses):
        raise _config_error("must contain a different address for each process", text)
    if kind not in jobs or not _is_number(str(index)) or int(index) >= len(jobs[kind]):
        raise _config_error("must contain a task that is in its cluster", text)
    before = sum(len(jobs[name]) for name in names[: names.index(kind)])
    return _build_process_info(addresses, before + int(index), _open_port(cluster_spec))


def _from_indexed_job(environment: Mapping[str, str], host_name: str) -> ProcessInfo:
    values = {name: environment.get(name, "").strip() for name in (WORKERS, SERVICE, _JOB_INDEX)}
    received = ", ".join(f"{name}={value!r}" for name, value in values.items())
    count, index, service = values[WORKERS], values[_JOB_INDEX], values[SERVICE]
    if not _is_number(count) or int(count) < 1:
        raise UsageError(
            f"{WORKERS} must be a number of processes.", f"Correct or unset {WORKERS}.", received=received
        )
    if int(count) == 1:
        return ProcessInfo()
    job, _, suffix = host_name.rpartition("-")
    if not _is_number(index) or int(index) >= int(count) or not service or not job or suffix != index:
        raise UsageError(
            f"{WORKERS} requires a pod of an Indexed Job: its host name is JOB-INDEX, its subdomain is "
            f"{SERVICE}, and the job has {WORKERS} completions.",
            f"Submit the job with `trainer submit gke --workers N`, or unset {WORKERS}.",
            received=f"{received} on the host {host_name}",
        )
    addresses = tuple(f"{job}-{number}.{service}:{PORT}" for number in range(int(count)))
    return _build_process_info(addresses, int(index), None)


def _build_process_info(addresses: tuple[str, ...], index: int, open_port: int | None) -> ProcessInfo:
    if len(addresses) == 1:
        return ProcessInfo()
    host, _, port = addresses[0].rpartition(":")
    higher = int(port) + _PORT_OFFSET
    control = open_port or (higher if higher <= _HIGHEST_PORT else int(port) - _PORT_OFFSET)
    return ProcessInfo(addresses, index, f"{host}:{control}")


def _open_port(cluster_spec: str) -> int | None:
    """Return the port besides TensorFlow's that Vertex AI opens between the machines of a job."""
    if not cluster_spec.strip():
        return None
    ports = _parse_object(cluster_spec, _CLUSTER_SPEC).get("open_ports") or []
    first = str(ports[0]) if isinstance(ports, list) and ports else ""
    return int(first) if _is_port(first) else None


def _require_supported(kind: str, text: str) -> None:
    unsupported = {"ps": "Parameter servers", "evaluator": "Evaluators"}
    if kind in unsupported:
        raise UsageError(
            f"{unsupported[kind]} are not supported: all processes train, and all evaluate.",
            f"Remove {kind} from the cluster in {TF_CONFIG}.",
            received=f"{TF_CONFIG}={text[:200]}",
        )
    if kind not in (*_CHIEFS, "worker"):
        raise _config_error("must contain only tasks of type chief and worker", text)


def _is_address(value: object) -> bool:
    host, _, port = str(value).rpartition(":")
    return isinstance(value, str) and bool(re.fullmatch(_HOST, host)) and _is_port(port)


def _is_port(text: str) -> bool:
    return _is_number(text) and 0 < int(text) <= _HIGHEST_PORT


def _is_number(text: str) -> bool:
    """Return whether `text` consists of 1 to 9 ASCII digits; isdigit() also accepts superscripts."""
    return re.fullmatch(r"[0-9]{1,9}", text) is not None


def _parse_object(text: str, name: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"{name} is not valid JSON: {error}.", f"Correct or unset {name}.", received=f"{text[:200]}"
        ) from None
    if not isinstance(value, dict):
        raise UsageError(
            f"{name} is not a JSON object.", f"Correct or unset {name}.", received=f"{text[:200]}"
        )
    return value


def _config_error(rule: str, text: str) -> UsageError:
    return UsageError(
        f"{TF_CONFIG} {rule}.",
        "See https://www.tensorflow.org/guide/distributed_training for its format.",
        received=f"{text[:200]}",
    )
