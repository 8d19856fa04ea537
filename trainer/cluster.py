"""The machine to a strategy and an arithmetic.

In: what TensorFlow finds on this host. Out: a `Cluster`: which devices there are, the
strategy that uses them, and which process this is of how many. One process on one host
for now; the training loop already asks only what this class answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tensorflow as tf

_BFLOAT16_FLAGS = ("avx512_bf16", "amx_bf16")
_BFLOAT16_CAPABILITY = (8, 0)


@dataclass(frozen=True)
class Cluster:
    """Where a run computes."""

    strategy: tf.distribute.Strategy
    device_kind: str
    """'CPU' or 'GPU'."""
    description: str
    """One line for people, such as 'cpu: AMD EPYC, 2 cores'."""
    has_bfloat16: bool
    """Whether the devices compute in bfloat16 faster than in float32."""
    index: int = 0
    count: int = 1

    @property
    def is_chief(self) -> bool:
        """Whether this process writes what the run leaves behind."""
        return self.index == 0


def find_cluster(deterministic: bool = False) -> Cluster:
    """Return the cluster of this host: its first GPU if it has one, else its CPU.

    `deterministic` holds TensorFlow to operations that give the same bits each time, for
    the rest of this process.
    """
    if deterministic:
        tf.config.experimental.enable_op_determinism()
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        return _cpu_cluster(Path("/proc/cpuinfo"))
    for gpu in gpus:
        # Take memory as it is needed: another process may share the device.
        tf.config.experimental.set_memory_growth(gpu, True)
    details = tf.config.experimental.get_device_details(gpus[0])
    capability = details.get("compute_capability", (0, 0))
    name = details.get("device_name", "GPU")
    return Cluster(
        strategy=tf.distribute.get_strategy(),
        device_kind="GPU",
        description=f"gpu: {name}, compute capability {'.'.join(map(str, capability))}",
        has_bfloat16=tuple(capability) >= _BFLOAT16_CAPABILITY,
    )


def choose_precision(precision: str, cluster: Cluster) -> str:
    """Return 'float32' or 'bfloat16': what `precision` says, 'auto' taking what is faster here."""
    if precision != "auto":
        return precision
    return "bfloat16" if cluster.has_bfloat16 else "float32"


def choose_xla(xla: str | bool, cluster: Cluster) -> bool:
    """Return whether to compile with XLA; 'auto' does on a GPU only, since on CPUs it was slower."""
    return cluster.device_kind == "GPU" if xla == "auto" else bool(xla)


def _cpu_cluster(cpuinfo: Path) -> Cluster:
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    flags = next((line.split() for line in text.splitlines() if line.startswith("flags")), [])
    found = [flag for flag in _BFLOAT16_FLAGS if flag in flags]
    cores = len(names) or 1
    return Cluster(
        strategy=tf.distribute.get_strategy(),
        device_kind="CPU",
        description=f"cpu: {names[0] if names else 'unknown'}, {cores} core{'s' * (cores > 1)}"
        + (f", bfloat16 ({found[0]})" if found else ""),
        has_bfloat16=bool(found),
    )
