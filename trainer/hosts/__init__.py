"""Process group of one run: rendezvous, broadcast, all-gather and failure detection.

The environment of the cluster yields a `Place`; rendezvous yields `Peers`. TensorFlow transfers the
gradients. This package transfers only small messages on which all processes agree, and failures.
"""

from trainer.hosts.meet import meet
from trainer.hosts.peers import Peers
from trainer.hosts.place import Place, read_place, read_share
from trainer.hosts.wire import is_free

__all__ = ["Peers", "Place", "is_free", "meet", "read_place", "read_share"]
