"""What the driver of NVIDIA's GPUs says.

In: this host. Out: its GPUs, and what is wrong with the driver.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

_OLDEST_DRIVER = 525  # of CUDA 12: https://docs.nvidia.com/deploy/cuda-compatibility
_DRIVER_SECONDS = 10.0
_WITHOUT_KERNELS = (12, 0)
"""Blackwell's workstation cards and newer GPUs, on which the wheels fail while compiling:
https://github.com/tensorflow/tensorflow/issues/89272."""


@dataclass(frozen=True)
class Gpu:
    """What the driver says of one GPU."""

    memory_mib: int
    driver: str


def ask_driver() -> list[Gpu]:
    """Return what nvidia-smi says of the GPUs of this host; nothing if there is none that answers."""
    query = ["nvidia-smi", "--query-gpu=memory.total,driver_version", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(
            query, capture_output=True, text=True, timeout=_DRIVER_SECONDS, check=True
        ).stdout
        rows = [line.split(",") for line in said.splitlines() if line.strip()]
        return [Gpu(int(memory), driver.strip()) for memory, driver in rows]
    except (OSError, subprocess.SubprocessError, ValueError):
        return []


def kernel_problem(capability: tuple[int, int], built: Sequence[str]) -> str | None:
    """Return a sentence for a GPU that TensorFlow has no kernels for, None for any other.

    built: the compute capabilities that TensorFlow was built for, such as sm_89 and compute_90.
    """
    newest = max((int(digits[1]) for each in built if (digits := re.search(r"_(\d+)$", each))), default=0)
    if capability < _WITHOUT_KERNELS or newest >= 10 * capability[0]:
        return None
    major, minor = capability
    return (
        f"This TensorFlow has no kernels for GPUs of compute capability {major}.{minor}; use another GPU, "
        "train on the CPU with train.devices=cpu, or use an image with a TensorFlow that was built for it."
    )


def driver_problem(gpus: Sequence[Gpu]) -> str | None:
    """Return a sentence for a driver that is too old for CUDA 12, None for any other."""
    majors = {gpu.driver: gpu.driver.partition(".")[0] for gpu in gpus}
    old = next(
        (each for each, major in majors.items() if major.isdigit() and int(major) < _OLDEST_DRIVER), None
    )
    if old is None:
        return None
    return (
        f"The driver {old} is too old for CUDA 12, which needs {_OLDEST_DRIVER} or newer; update the host's."
    )
