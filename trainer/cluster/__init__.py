"""The machines to a strategy and an arithmetic.

In: what TensorFlow finds on this host, what the spec asks for, and the other processes of the run. Out: a
`Cluster`: which devices there are, the strategy that uses them all, and which process this is of how many.
"""

from trainer.cluster.driver import Gpu, ask_driver, driver_problem, kernel_problem
from trainer.cluster.find import Cluster, choose_precision, choose_xla, find_cluster, require_accelerator

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
