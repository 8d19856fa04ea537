"""Process group of one run: rendezvous, broadcast, all-gather and failure detection.

The environment of the cluster yields a `ProcessInfo`; rendezvous yields `ProcessGroup`. TensorFlow
transfers the gradients. This package transfers only small messages on which all processes agree, and
failures.
"""

from trainer.distributed.connection import is_free
from trainer.distributed.process_group import ProcessGroup
from trainer.distributed.process_info import ProcessInfo, read_process_info, read_share
from trainer.distributed.rendezvous import join_process_group

__all__ = ["ProcessGroup", "ProcessInfo", "is_free", "join_process_group", "read_process_info", "read_share"]
