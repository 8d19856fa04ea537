"""Races of eight processes: one pointer to move, or one run to take over."""

from __future__ import annotations

import json
import multiprocessing
import tempfile
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

from chaos.fixtures import emulated_bucket
from trainer.errors import TemporaryError
from trainer.storage import lease as leases
from trainer.storage import open_store
from trainer.storage.lease import take_lease
from trainer.storage.store import Store

RACERS = 8
_EXPIRY_SECONDS = 5.0
_TIMEOUT_SECONDS = 60.0
"""Timeout in seconds, in case a process has died."""


def main(times: int, seed: int) -> list[str]:
    """Run `times` races, a quarter of each kind; return those without exactly one winner."""
    with tempfile.TemporaryDirectory() as temporary:
        problems = _run_races(str(Path(temporary, "runs")), times - times // 2)
        with emulated_bucket("races") as output:
            return problems + _run_races(output, times // 2)


def _run_races(output: str, times: int) -> list[str]:
    problems: list[str] = []
    for kind, move in (("pointer", _move_pointer), ("run", _take_run)):
        wins = _races(output, move, times // 2)
        problems += [
            f"{output}: race {turn} for the {kind} had {won} winners"
            for turn, won in enumerate(wins)
            if won != 1
        ]
        print(f"{output}: {len(wins)} races for one {kind}, {sum(won == 1 for won in wins)} with one winner")
    return problems


def _races(output: str, move: Callable[[Store, int, Barrier], bool], times: int) -> list[int]:
    """Return the number of winners of each race."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(RACERS, timeout=_TIMEOUT_SECONDS), context.Queue()
    racers = [
        context.Process(target=_race, args=(output, move, times, barrier, results), daemon=True)
        for _ in range(RACERS)
    ]
    for racer in racers:
        racer.start()
    wins = [0] * times
    for _ in range(RACERS * times):
        turn, won = results.get(timeout=2 * _TIMEOUT_SECONDS)
        wins[turn] += won
    for racer in racers:
        racer.join()
    return wins


def _race(output: str, move: Callable[..., bool], times: int, barrier: Barrier, results: Any) -> None:
    store = open_store(output)
    for turn in range(times):
        results.put((turn, move(store, turn, barrier)))


def _move_pointer(store: Store, turn: int, barrier: Barrier) -> bool:
    pointer = store.read("pointer")
    barrier.wait()
    name = multiprocessing.current_process().name
    return store.swap("pointer", f"{turn} {name}".encode(), pointer.version if pointer else None) is not None


def _take_run(store: Store, turn: int, barrier: Barrier) -> bool:
    """Take a lease that is free or, in every other race, was left by a dead process."""
    if barrier.wait() == 0 and turn % 2:
        stale = leases.describe_self() | {"process_started": "0"}  # same process ID, another process
        store.create(f".run-{turn}.lease", json.dumps(stale).encode())
    barrier.wait()
    try:
        lease = take_lease(store, f".run-{turn}.lease", lambda message: None, _EXPIRY_SECONDS)
    except TemporaryError:
        barrier.wait()
        return False
    barrier.wait()  # hold the lease until all others have tried
    lease.release()
    return True
