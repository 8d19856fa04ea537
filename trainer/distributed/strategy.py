"""Device discovery, and the distribution strategy over the devices of all processes."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf

from trainer.distributed import ProcessGroup, ProcessInfo
from trainer.distributed.driver import ask_driver, driver_problem, kernel_problem
from trainer.distributed.host import Host, agreed_on
from trainer.errors import AcceleratorError, TrainerError, UsageError

_BFLOAT16_FLAGS = ("avx512_bf16", "amx_bf16")
_BFLOAT16_CAPABILITY = (8, 0)
_TPU_NAME, _LOCAL = "TPU_NAME", "local"
_MOST_LOGICAL = 64
_STDERR = 2
_ALONE = ProcessGroup(ProcessInfo())


@dataclass(frozen=True)
class Cluster:
    """Devices and strategy of a run."""

    strategy: tf.distribute.Strategy
    device_kind: str
    """'CPU', 'GPU' or 'TPU'."""
    description: str
    """One line for messages, such as 'cpu: AMD EPYC, 2 cores'."""
    has_bfloat16: bool
    """Whether the devices compute faster in bfloat16 than in float32."""
    peers: ProcessGroup = _ALONE
    memory_bytes: int | None = None
    """Memory of the smallest GPU of all hosts in bytes; None if unknown."""

    @property
    def process_index(self) -> int:
        """Index of this process, from 0."""
        return self.peers.process.process_index

    @property
    def process_count(self) -> int:
        """Number of processes."""
        return self.peers.process.process_count

    @property
    def is_chief(self) -> bool:
        """Whether this process is the chief, which writes the outputs of the run."""
        return self.peers.process.is_chief


def find_cluster(deterministic: bool = False, devices: str = "auto", peers: ProcessGroup = _ALONE) -> Cluster:
    """Return the cluster of this host and its `peers`; must be called before any TensorFlow operation.

    `devices`: 'auto' is a TPU if there is one, else all GPUs, else the CPU; 'cpu', 'gpu' or 'tpu' is all
    devices of that kind; 'gpu:2' is the first two GPUs, 'cpu:4' four logical devices of the one CPU.
    `deterministic` restricts TensorFlow to operations that give bitwise identical results, for the rest of
    this process. Raises AcceleratorError if the devices are missing, UsageError if `devices` is invalid.
    """
    if deterministic:
        tf.config.experimental.enable_op_determinism()
    kind, wanted = _parsed(devices)
    if kind == "tpu" or (kind == "auto" and _has_tpu()):
        return _tpu_cluster(peers)
    gpus = tf.config.list_physical_devices("GPU")
    if kind == "gpu":
        gpus = _required(gpus, max(1, wanted))[: wanted or None]
    if kind == "cpu" and wanted > _MOST_LOGICAL:
        raise UsageError(f"cpu:COUNT is {_MOST_LOGICAL} devices of the one CPU at most.", received=devices)
    if kind == "cpu" or not gpus:
        tf.config.set_visible_devices([], "GPU")
        return _cpu_cluster(Path("/proc/cpuinfo"), max(1, wanted), peers)
    return _gpu_cluster(gpus, peers)


def require_accelerator(wanted: str) -> None:
    """Raise AcceleratorError unless the host has `wanted`: 'gpu', 'gpu:4' (at least 4) or 'tpu'."""
    kind, count = _parsed(wanted)
    if kind == "gpu":
        _required(tf.config.list_physical_devices("GPU"), max(1, count))
    elif kind == "tpu":
        _tpu_resolver()
        os.environ.setdefault(_TPU_NAME, _LOCAL)  # so that 'auto' selects the TPU
    else:
        raise UsageError("An accelerator is gpu, gpu:COUNT or tpu.", received=f"{wanted!r}")


def choose_precision(precision: str, cluster: Cluster, is_depthwise: bool = False) -> str:
    """Return `precision`, with 'auto' resolved to the faster of 'float32' and 'bfloat16' on this cluster.

    `is_depthwise`: whether the network has depthwise convolutions, which run at half the speed in bfloat16 on
    a CPU.
    """
    if precision != "auto":
        return precision
    is_slower = is_depthwise and cluster.device_kind == "CPU"
    return "bfloat16" if cluster.has_bfloat16 and not is_slower else "float32"


def choose_xla(xla: str | bool, cluster: Cluster) -> bool:
    """Return whether to compile with XLA; 'auto' does so only on a GPU, since it was slower on CPUs."""
    return cluster.device_kind == "GPU" if xla == "auto" else bool(xla)


def _parsed(devices: str) -> tuple[str, int]:
    """Return the device kind and the count; the count is 0 if not specified."""
    found = re.fullmatch(r"(auto|cpu|gpu|tpu)(?::([1-9][0-9]{0,3}))?", devices)
    if found is None or (found[2] and found[1] in ("auto", "tpu")):
        raise UsageError("Devices are auto, cpu, gpu, tpu, cpu:COUNT or gpu:COUNT.", received=f"{devices!r}")
    return found[1], int(found[2] or 0)


def _required(gpus: Sequence[Any], wanted: int) -> Sequence[Any]:
    if len(gpus) >= wanted:
        return gpus
    given = len(list(Path("/dev").glob("nvidia[0-9]*")))
    raise AcceleratorError(
        f"{wanted} GPU{'s' * (wanted > 1)} asked for, and TensorFlow sees {len(gpus) or 'none'}. "
        f"{_why_no_gpu()}",
        received=f"TensorFlow {tf.__version__}, {given} devices /dev/nvidia*",
    )


def _why_no_gpu() -> str:
    if not tf.test.is_built_with_cuda():
        return "This TensorFlow is built for CPUs; install the extra gpu."
    if not Path("/dev/nvidia0").exists():
        return "The host gives this process no GPU; in a container ask for one (--gpus all, nvidia.com/gpu)."
    return driver_problem(ask_driver()) or "Look at nvidia-smi for what the driver says."


def _gpu_cluster(gpus: Sequence[Any], peers: ProcessGroup) -> Cluster:
    tf.config.set_visible_devices(list(gpus), "GPU")
    for gpu in gpus:
        # Allocate memory on demand, since another process may share the device.
        tf.config.experimental.set_memory_growth(gpu, True)
    details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
    capability = min(tuple(each.get("compute_capability", (0, 0))) for each in details)
    names = sorted({each.get("device_name", "GPU") for each in details})
    newest = max(tuple(each.get("compute_capability", (0, 0))) for each in details)
    if problem := kernel_problem(newest, tf.sysconfig.get_build_info().get("cuda_compute_capabilities", [])):
        raise AcceleratorError(f"{problem}", received=f"{', '.join(names)}, TensorFlow {tf.__version__}")
    number = f"{len(gpus)} x " if len(gpus) > 1 else ""
    said = ask_driver()
    memory_mib = min((each.memory_mib for each in said), default=0)
    agreed = agreed_on(Host("GPU", len(gpus), capability >= _BFLOAT16_CAPABILITY, memory_mib), peers)
    return Cluster(
        strategy=_strategy([f"GPU:{index}" for index in range(len(gpus))], peers),
        device_kind="GPU",
        description=f"gpu: {number}{', '.join(names)}, "
        + (f"{memory_mib:,} MiB, " if memory_mib else "")
        + f"compute capability {'.'.join(map(str, capability))}"
        + (f", driver {said[0].driver}" if said else "")
        + _of_hosts(peers),
        has_bfloat16=agreed.has_bfloat16,
        peers=peers,
        memory_bytes=agreed.memory_mib << 20 or None,
    )


def _cpu_cluster(cpuinfo: Path, logical: int, peers: ProcessGroup) -> Cluster:
    if logical > 1:
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * logical)
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    flags = next((line.split() for line in text.splitlines() if line.startswith("flags")), [])
    found = [flag for flag in _BFLOAT16_FLAGS if flag in flags]
    cores = len(names) or 1
    agreed = agreed_on(Host("CPU", logical, bool(found), 0), peers)
    return Cluster(
        strategy=_strategy([f"CPU:{index}" for index in range(logical)], peers),
        device_kind="CPU",
        description=f"cpu: {names[0] if names else 'unknown'}, {cores} core{'s' * (cores > 1)}"
        + (f" as {logical} devices" if logical > 1 else "")
        + (f", bfloat16 ({found[0]})" if found else "")
        + _of_hosts(peers),
        has_bfloat16=agreed.has_bfloat16,
        peers=peers,
    )


def _has_tpu() -> bool:
    """Return whether TPU_NAME is set, or this host has a TPU and libtpu is installed."""
    nodes = [*Path("/dev").glob("accel*"), *Path("/dev/vfio").glob("[0-9]*")]
    return bool(os.environ.get(_TPU_NAME) or (nodes and importlib.util.find_spec("libtpu")))


def _tpu_resolver() -> Any:
    try:
        return tf.distribute.cluster_resolver.TPUClusterResolver.connect(os.environ.get(_TPU_NAME) or _LOCAL)
    except (ValueError, OSError, RuntimeError, ImportError, tf.errors.OpError) as error:
        raise AcceleratorError(
            "There is no TPU here that TensorFlow can use; it needs the extra tpu.",
            received=f"{str(error).splitlines()[0][:200] if str(error) else type(error).__name__}",
        ) from None


def _tpu_cluster(peers: ProcessGroup) -> Cluster:
    if peers.process.process_count > 1:
        raise UsageError(
            "A TPU is trained on by one process, which reaches all its cores; leave TF_CONFIG and "
            "TRAINER_WORKERS out.",
            received=f"{peers.process.process_count} processes",
        )
    strategy = tf.distribute.TPUStrategy(_tpu_resolver())
    cores = strategy.num_replicas_in_sync
    return Cluster(strategy, "TPU", f"tpu: {cores} core{'s' * (cores > 1)}", True, peers)


def _of_hosts(peers: ProcessGroup) -> str:
    return (
        f"; worker {peers.process.process_index} of {peers.process.process_count}"
        if peers.process.process_count > 1
        else ""
    )


def _strategy(devices: list[str], peers: ProcessGroup) -> tf.distribute.Strategy:
    """Return the strategy for these devices of this host and as many on every other host."""
    place = peers.process
    if place.process_count == 1:
        return tf.distribute.get_strategy() if len(devices) == 1 else tf.distribute.MirroredStrategy(devices)
    kind = devices[0].partition(":")[0]
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec({"worker": list(place.addresses)}), task_type="worker",
        task_id=place.process_index,
        num_accelerators={kind: len(devices)} if kind == "GPU" else {}, rpc_layer="grpc",
    )  # fmt: skip
    strategy = tf.distribute.MultiWorkerMirroredStrategy(resolver)
    peers.on_failure(_abort)
    if strategy.num_replicas_in_sync != len(devices) * place.process_count:
        raise UsageError(
            "With several processes TensorFlow takes one CPU device of each; start more processes instead.",
            received=f"{len(devices)} devices in each of {place.process_count}",
        )
    return strategy


def _abort(error: TrainerError) -> None:
    """Abort pending collectives when a peer has failed."""
    from tensorflow.python.eager import context

    with _without_log_lines("StartAbort"):
        context.context().abort_collective_ops(tf.errors.UNAVAILABLE, json.dumps(str(error)))


@contextmanager
def _without_log_lines(text: str) -> Iterator[None]:
    """Drop the lines with `text` that TensorFlow writes to standard error within the block.

    It logs each aborted collective as an error, also when all processes stop on request.
    """
    sys.stderr.flush()
    original, hidden = os.dup(_STDERR), os.memfd_create("stderr")
    os.dup2(hidden, _STDERR)
    try:
        yield
    finally:
        os.dup2(original, _STDERR)
        os.lseek(hidden, 0, os.SEEK_SET)
        with os.fdopen(hidden, "rb") as lines, os.fdopen(original, "wb") as stderr:
            stderr.writelines(line for line in lines if text.encode() not in line)
