"""Agreement of all processes of a run on their devices."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from trainer.exits import AcceleratorError, TemporaryError
from trainer.hosts import Peers, is_free


@dataclass(frozen=True)
class Host:
    """Devices of one process."""

    kind: str
    devices: int
    has_bfloat16: bool
    memory_mib: int
    """Memory of its smallest device; 0 if unknown."""


def agreed_on(mine: Host, peers: Peers) -> Host:
    """Return the devices and capabilities that all processes of the run share.

    Raises AcceleratorError if the processes have different devices, and TemporaryError if this process cannot
    open its TensorFlow port, for which TensorFlow would wait forever.
    """
    place = peers.place
    if place.count == 1:
        return mine
    own = place.addresses[place.index]
    if not is_free(own):
        raise TemporaryError(
            "TensorFlow can't open its port for the other processes of the run; end what holds "
            f"it, or give another one in TF_CONFIG. Received: {own}"
        )
    hosts = [Host(**json.loads(each)) for each in peers.exchange(json.dumps(asdict(mine)).encode())]
    for index, host in enumerate(hosts):
        if (host.kind, host.devices) != (hosts[0].kind, hosts[0].devices):
            raise AcceleratorError(
                f"All processes of a run have as many devices of one kind; see why {place.name(index)} has "
                f"others, or set train.devices. Received: {host.devices} {host.kind} there, "
                f"{hosts[0].devices} {hosts[0].kind} on the first"
            )
    least = min(host.memory_mib for host in hosts)
    return Host(mine.kind, mine.devices, all(host.has_bfloat16 for host in hosts), least)
