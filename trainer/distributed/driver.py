"""NVIDIA GPUs of this host, and compatibility of their driver and compute capability."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

_OLDEST_DRIVER = 525  # for CUDA 12: https://docs.nvidia.com/deploy/cuda-compatibility
_DRIVER_SECONDS = 10.0
_WITHOUT_KERNELS = (12, 0)
"""Compute capability from which on TensorFlow's wheels fail to compile kernels (Blackwell workstation cards).

See https://github.com/tensorflow/tensorflow/issues/89272.
"""


@dataclass(frozen=True)
class Gpu:
    """Memory and driver version of one GPU, as reported by nvidia-smi."""

    memory_mib: int
    driver: str


def ask_driver() -> list[Gpu]:
    """Return the GPUs of this host according to nvidia-smi; an empty list if it is missing or fails."""
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
    """Return an error message for a GPU that TensorFlow has no kernels for, None for any other.

    `built` are the compute capabilities that TensorFlow was built for, such as sm_89 and compute_90.
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
    """Return an error message for a driver that is too old for CUDA 12, None for any other."""
    majors = {gpu.driver: gpu.driver.partition(".")[0] for gpu in gpus}
    old = next(
        (each for each, major in majors.items() if major.isdigit() and int(major) < _OLDEST_DRIVER), None
    )
    if old is None:
        return None
    return (
        f"The driver {old} is too old for CUDA 12, which needs {_OLDEST_DRIVER} or newer; update the host's."
    )
