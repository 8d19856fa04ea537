"""Devices, distribution strategy and arithmetic of a run.

A `Cluster` combines the devices that TensorFlow finds on this host, the strategy that uses them together with
those of the other processes, and the index and number of processes.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf

from trainer.compat import abort_collectives
from trainer.distributed import ProcessGroup, ProcessInfo, is_free
from trainer.errors import AcceleratorError, TemporaryError, TrainerError, UsageError

_OLDEST_DRIVER = 525  # for CUDA 12: https://docs.nvidia.com/deploy/cuda-compatibility
_DRIVER_SECONDS = 10.0
_STDERR = 2
_NO_KERNELS_FROM = (12, 0)
"""Compute capability from which on TensorFlow's wheels fail to compile kernels (Blackwell workstation cards).

See https://github.com/tensorflow/tensorflow/issues/89272.
"""
_BFLOAT16_FLAGS = ("avx512_bf16", "amx_bf16")
_BFLOAT16_CAPABILITY = (8, 0)
_TPU_NAME, _LOCAL = "TPU_NAME", "local"
_MAX_LOGICAL_DEVICES = 64
_SINGLE_PROCESS = ProcessGroup(ProcessInfo())


@dataclass(frozen=True)
class Gpu:
    """Memory and driver version of one GPU, as reported by nvidia-smi."""

    memory_mib: int
    driver: str


@dataclass(frozen=True)
class Host:
    """Devices of one process."""

    kind: str
    devices: int
    has_bfloat16: bool
    memory_mib: int
    """Memory of its smallest device; 0 if unknown."""


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
    group: ProcessGroup = _SINGLE_PROCESS
    memory_bytes: int | None = None
    """Memory of the smallest GPU of all hosts in bytes; None if unknown."""

    @property
    def process_index(self) -> int:
        """Index of this process, from 0."""
        return self.group.process.process_index

    @property
    def process_count(self) -> int:
        """Number of processes."""
        return self.group.process.process_count

    @property
    def is_chief(self) -> bool:
        """Whether this process is the chief, which writes the outputs of the run."""
        return self.group.process.is_chief


def find_cluster(
    deterministic: bool = False, devices: str = "auto", group: ProcessGroup = _SINGLE_PROCESS
) -> Cluster:
    """Return the cluster of this host and its `group`; must be called before any TensorFlow operation.

    `devices`: 'auto' is a TPU if there is one, else all GPUs, else the CPU; 'cpu', 'gpu' or 'tpu' is all
    devices of that kind; 'gpu:2' is the first two GPUs, 'cpu:4' four logical devices of the one CPU.
    `deterministic` restricts TensorFlow to operations that give bitwise identical results, for the rest of
    this process. Raises AcceleratorError if the devices are missing, UsageError if `devices` is invalid.
    """
    if deterministic:
        tf.config.experimental.enable_op_determinism()
    kind, wanted = _parse_devices(devices)
    if kind == "tpu" or (kind == "auto" and _has_tpu()):
        return _build_tpu_cluster(group)
    gpus = tf.config.list_physical_devices("GPU")
    if kind == "gpu":
        gpus = _require_gpus(gpus, max(1, wanted))[: wanted or None]
    if kind == "cpu" and wanted > _MAX_LOGICAL_DEVICES:
        raise UsageError(
            f"cpu:COUNT must be at most {_MAX_LOGICAL_DEVICES} logical devices.",
            "Lower the count in train.devices.",
            received=devices,
        )
    if kind == "cpu" or not gpus:
        tf.config.set_visible_devices([], "GPU")
        return _build_cpu_cluster(Path("/proc/cpuinfo"), max(1, wanted), group)
    return _build_gpu_cluster(gpus, group)


def require_accelerator(wanted: str) -> None:
    """Raise AcceleratorError unless the host has `wanted`: 'gpu', 'gpu:4' (at least 4) or 'tpu'."""
    kind, count = _parse_devices(wanted)
    if kind == "gpu":
        _require_gpus(tf.config.list_physical_devices("GPU"), max(1, count))
    elif kind == "tpu":
        _tpu_resolver()
        os.environ.setdefault(_TPU_NAME, _LOCAL)  # so that 'auto' selects the TPU
    else:
        raise UsageError(
            "The accelerator must be gpu, gpu:COUNT or tpu.",
            "Correct --require-accelerator.",
            received=f"{wanted!r}",
        )


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


def query_gpus() -> list[Gpu]:
    """Return the GPUs of this host according to nvidia-smi; an empty list if it is missing or fails."""
    query = ["nvidia-smi", "--query-gpu=memory.total,driver_version", "--format=csv,noheader,nounits"]
    try:
        output = subprocess.run(
            query, capture_output=True, text=True, timeout=_DRIVER_SECONDS, check=True
        ).stdout
        rows = [line.split(",") for line in output.splitlines() if line.strip()]
        return [Gpu(int(memory), driver.strip()) for memory, driver in rows]
    except (OSError, subprocess.SubprocessError, ValueError):
        return []


def find_kernel_problem(capability: tuple[int, int], built: Sequence[str]) -> str | None:
    """Return an error message for a GPU that TensorFlow has no kernels for, None for any other.

    `built` are the compute capabilities that TensorFlow was built for, such as sm_89 and compute_90.
    """
    numbers = [int(match[1]) for name in built if (match := re.search(r"_(\d+)$", name))]
    newest = max(numbers, default=0)
    if capability < _NO_KERNELS_FROM or newest >= 10 * capability[0]:
        return None
    major, minor = capability
    return (
        f"This TensorFlow has no kernels for GPUs of compute capability {major}.{minor}. Use another GPU, "
        "train on the CPU with train.devices=cpu, or use an image with a TensorFlow that was built for it."
    )


def find_driver_problem(gpus: Sequence[Gpu]) -> str | None:
    """Return an error message for a driver that is too old for CUDA 12, None for any other."""
    majors = {gpu.driver: gpu.driver.partition(".")[0] for gpu in gpus}
    old = [driver for driver, major in majors.items() if major.isdigit() and int(major) < _OLDEST_DRIVER]
    if not old:
        return None
    return f"The NVIDIA driver {old[0]} is too old for CUDA 12. Update it to {_OLDEST_DRIVER} or newer."


def agree_on_devices(local: Host, group: ProcessGroup) -> Host:
    """Return the devices and capabilities that all processes of the run share.

    Raises AcceleratorError if the processes have different devices, and TemporaryError if this process cannot
    open its TensorFlow port, for which TensorFlow would wait forever.
    """
    process = group.process
    if process.process_count == 1:
        return local
    address = process.addresses[process.process_index]
    if not is_free(address):
        raise TemporaryError(
            "TensorFlow cannot open its port for the other processes of the run.",
            "End the program that uses the port, or set another one in TF_CONFIG.",
            received=address,
        )
    hosts = [Host(**json.loads(data)) for data in group.all_gather(json.dumps(asdict(local)).encode())]
    for index, host in enumerate(hosts):
        if (host.kind, host.devices) != (hosts[0].kind, hosts[0].devices):
            raise AcceleratorError(
                f"The devices of {process.name(index)} differ from those of the chief.",
                "All processes need the same number and kind. Check the host, or set train.devices.",
                received=f"{host.devices} {host.kind}, and {hosts[0].devices} {hosts[0].kind} on the chief",
            )
    least = min(host.memory_mib for host in hosts)
    return Host(local.kind, local.devices, all(host.has_bfloat16 for host in hosts), least)


def _parse_devices(devices: str) -> tuple[str, int]:
    """Return the device kind and the count; the count is 0 if not specified."""
    match = re.fullmatch(r"(auto|cpu|gpu|tpu)(?::([1-9][0-9]{0,3}))?", devices)
    if match is None or (match[2] and match[1] in ("auto", "tpu")):
        raise UsageError(
            "Devices must be auto, cpu, gpu, tpu, cpu:COUNT or gpu:COUNT.",
            "Correct train.devices.",
            received=f"{devices!r}",
        )
    return match[1], int(match[2] or 0)


def _require_gpus(gpus: Sequence[Any], wanted: int) -> Sequence[Any]:
    if len(gpus) >= wanted:
        return gpus
    device_files = len(list(Path("/dev").glob("nvidia[0-9]*")))
    raise AcceleratorError(
        f"The run requires {wanted} GPU{'s' * (wanted > 1)}, but TensorFlow finds {len(gpus) or 'none'}.",
        _explain_missing_gpu(),
        received=f"TensorFlow {tf.__version__}, {device_files} devices /dev/nvidia*",
    )


def _explain_missing_gpu() -> str:
    if not tf.test.is_built_with_cuda():
        return "This TensorFlow is built for CPUs; install the extra gpu: pip install 'trainer[gpu]'."
    if not Path("/dev/nvidia0").exists():
        return (
            "This process has no access to a GPU; in a container, request one (--gpus all, nvidia.com/gpu)."
        )
    return find_driver_problem(query_gpus()) or "Check the output of nvidia-smi."


def _build_gpu_cluster(gpus: Sequence[Any], group: ProcessGroup) -> Cluster:
    tf.config.set_visible_devices(list(gpus), "GPU")
    for gpu in gpus:
        # Allocate memory on demand, since another process may share the device.
        tf.config.experimental.set_memory_growth(gpu, True)
    details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
    capabilities = [tuple(detail.get("compute_capability", (0, 0))) for detail in details]
    capability = min(capabilities)
    names = sorted({detail.get("device_name", "GPU") for detail in details})
    if problem := find_kernel_problem(
        max(capabilities), tf.sysconfig.get_build_info().get("cuda_compute_capabilities", [])
    ):
        raise AcceleratorError(problem, received=f"{', '.join(names)}, TensorFlow {tf.__version__}")
    number = f"{len(gpus)} x " if len(gpus) > 1 else ""
    drivers = query_gpus()
    memory_mib = min((gpu.memory_mib for gpu in drivers), default=0)
    agreed = agree_on_devices(Host("GPU", len(gpus), capability >= _BFLOAT16_CAPABILITY, memory_mib), group)
    return Cluster(
        strategy=_build_strategy([f"GPU:{index}" for index in range(len(gpus))], group),
        device_kind="GPU",
        description=f"gpu: {number}{', '.join(names)}, "
        + (f"{memory_mib:,} MiB, " if memory_mib else "")
        + f"compute capability {'.'.join(map(str, capability))}"
        + (f", driver {drivers[0].driver}" if drivers else "")
        + _worker_suffix(group),
        has_bfloat16=agreed.has_bfloat16,
        group=group,
        memory_bytes=agreed.memory_mib << 20 or None,
    )


def _build_cpu_cluster(cpuinfo: Path, logical_devices: int, group: ProcessGroup) -> Cluster:
    if logical_devices > 1:
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration()] * logical_devices
        )
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    flags = next((line.split() for line in text.splitlines() if line.startswith("flags")), [])
    bfloat16 = [flag for flag in _BFLOAT16_FLAGS if flag in flags]
    cores = len(names) or 1
    agreed = agree_on_devices(Host("CPU", logical_devices, bool(bfloat16), 0), group)
    return Cluster(
        strategy=_build_strategy([f"CPU:{index}" for index in range(logical_devices)], group),
        device_kind="CPU",
        description=f"cpu: {names[0] if names else 'unknown'}, {cores} core{'s' * (cores > 1)}"
        + (f" as {logical_devices} devices" if logical_devices > 1 else "")
        + (f", bfloat16 ({bfloat16[0]})" if bfloat16 else "")
        + _worker_suffix(group),
        has_bfloat16=agreed.has_bfloat16,
        group=group,
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
            "TensorFlow finds no usable TPU on this host.",
            "Install the extra tpu: pip install 'trainer[tpu]'.",
            received=f"{str(error).splitlines()[0][:200] if str(error) else type(error).__name__}",
        ) from None


def _build_tpu_cluster(group: ProcessGroup) -> Cluster:
    if group.process.process_count > 1:
        raise UsageError(
            "A run on a TPU has a single process, which uses all cores.",
            "Unset TF_CONFIG and TRAINER_WORKERS.",
            received=f"{group.process.process_count} processes",
        )
    strategy = tf.distribute.TPUStrategy(_tpu_resolver())
    cores = strategy.num_replicas_in_sync
    return Cluster(strategy, "TPU", f"tpu: {cores} core{'s' * (cores > 1)}", True, group)


def _worker_suffix(group: ProcessGroup) -> str:
    return (
        f"; worker {group.process.process_index} of {group.process.process_count}"
        if group.process.process_count > 1
        else ""
    )


def _build_strategy(devices: list[str], group: ProcessGroup) -> tf.distribute.Strategy:
    """Return the strategy for these devices of this host and as many on every other host."""
    process = group.process
    if process.process_count == 1:
        return tf.distribute.get_strategy() if len(devices) == 1 else tf.distribute.MirroredStrategy(devices)
    kind = devices[0].partition(":")[0]
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec({"worker": list(process.addresses)}), task_type="worker",
        task_id=process.process_index,
        num_accelerators={kind: len(devices)} if kind == "GPU" else {}, rpc_layer="grpc",
    )  # fmt: skip
    strategy = tf.distribute.MultiWorkerMirroredStrategy(resolver)
    group.on_failure(_abort)
    if strategy.num_replicas_in_sync != len(devices) * process.process_count:
        raise UsageError(
            "With several processes, TensorFlow uses only one CPU device of each.",
            "Set train.devices=cpu, and start more processes instead.",
            received=f"{len(devices)} devices in each of {process.process_count} processes",
        )
    return strategy


def _abort(error: TrainerError) -> None:
    """Abort pending collectives when a peer has failed."""
    with _without_log_lines("StartAbort"):
        abort_collectives(tf.errors.UNAVAILABLE, json.dumps(str(error)))


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
