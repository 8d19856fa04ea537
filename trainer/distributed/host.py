"""Agreement of all processes of a run on their devices."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from trainer.distributed import ProcessGroup, is_free
from trainer.errors import AcceleratorError, TemporaryError


@dataclass(frozen=True)
class Host:
    """Devices of one process."""

    kind: str
    devices: int
    has_bfloat16: bool
    memory_mib: int
    """Memory of its smallest device; 0 if unknown."""


def agreed_on(mine: Host, peers: ProcessGroup) -> Host:
    """Return the devices and capabilities that all processes of the run share.

    Raises AcceleratorError if the processes have different devices, and TemporaryError if this process cannot
    open its TensorFlow port, for which TensorFlow would wait forever.
    """
    place = peers.process
    if place.process_count == 1:
        return mine
    own = place.addresses[place.process_index]
    if not is_free(own):
        raise TemporaryError(
            "TensorFlow can't open its port for the other processes of the run; end what holds "
            "it, or give another one in TF_CONFIG.",
            received=own,
        )
    hosts = [Host(**json.loads(each)) for each in peers.all_gather(json.dumps(asdict(mine)).encode())]
    for index, host in enumerate(hosts):
        if (host.kind, host.devices) != (hosts[0].kind, hosts[0].devices):
            raise AcceleratorError(
                f"All processes of a run have as many devices of one kind; see why {place.name(index)} has "
                f"others, or set train.devices.",
                received=f"{host.devices} {host.kind} there, {hosts[0].devices} {hosts[0].kind} on the first",
            )
    least = min(host.memory_mib for host in hosts)
    return Host(mine.kind, mine.devices, all(host.has_bfloat16 for host in hosts), least)
