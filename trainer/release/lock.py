"""Lease of a finished run, held while it is judged, withdrawn or restored.

It is the lease that training takes too, so none of these overlap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

from trainer.errors import TemporaryError
from trainer.runs import lease_of
from trainer.storage.lease import Lease, take_lease
from trainer.storage.store import Store


@contextmanager
def run_lease(output: Store, name: str, on_wait: Callable[[str], None]) -> Iterator[Lease]:
    """Hold the lease of a run. Raises TemporaryError if another process holds it."""
    lease = take_lease(output, lease_of(name), on_wait)
    try:
        yield lease
    finally:
        lease.release()


@contextmanager
def run_lease_if_free(
    output: Store, name: str, on_wait: Callable[[str], None] = lambda message: None
) -> Iterator[Lease | None]:
    """Hold the lease of a run; yields None if another process holds it."""
    with ExitStack() as stack:
        lease = None
        with suppress(TemporaryError):
            lease = stack.enter_context(run_lease(output, name, on_wait))
        yield lease
