"""Which process of how many this is, and what the processes of one run tell each other.

In: what a cluster's environment says. Out: a `Place`, and `Peers` who have met. TensorFlow
carries the gradients; here go the few bytes on which all have to agree, and the news that one is gone.
"""

from trainer.hosts.meet import meet
from trainer.hosts.peers import Peers
from trainer.hosts.place import Place, read_place, read_share
from trainer.hosts.wire import is_free

__all__ = ["Peers", "Place", "is_free", "meet", "read_place", "read_share"]
