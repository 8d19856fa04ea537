"""Devices, distribution strategy and arithmetic of a run.

A `Cluster` combines the devices that TensorFlow finds on this host, the strategy that uses them together with
those of the other processes, and the index and number of processes.
"""

from trainer.distributed.driver import Gpu, ask_driver, driver_problem, kernel_problem
from trainer.distributed.strategy import (
    Cluster,
    choose_precision,
    choose_xla,
    find_cluster,
    require_accelerator,
)

__all__ = [
    "Cluster",
    "Gpu",
    "ask_driver",
    "choose_precision",
    "choose_xla",
    "driver_problem",
    "find_cluster",
    "kernel_problem",
    "require_accelerator",
]
