"""Free local TCP ports."""

from __future__ import annotations

import socket


def addresses(count: int) -> list[str]:
    """Return `count` addresses of unused local ports."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    found = [f"127.0.0.1:{each.getsockname()[1]}" for each in sockets]
    for each in sockets:
        each.close()
    return found
