"""Our transfers against the fastest setting of the client library alone: many small files, one large."""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from bucket_server import BUCKET
from chaos_places import bucket_place
from google.cloud.storage import Client, transfer_manager

from trainer.storage.mirror import Mirror
from trainer.storage.store import Store, open_store
from trainer.storage.transfers import download_files

SMALL = 2000
LARGE_BYTES = 500 << 20
WORKERS = (8, 32)

Transfer = Callable[[], None]


def main(times: int, seed: int) -> list[str]:
    """Measure `times` rounds of each; return what did not come back as it went."""
    problems: list[str] = []
    with tempfile.TemporaryDirectory() as temporary, bucket_place("transfer") as output:
        for kind, sizes in (("small", [20_000] * SMALL), ("large", [LARGE_BYTES])):
            folder = Path(temporary, kind)
            folder.mkdir()
            for number, size in enumerate(sizes):
                (folder / f"{number:05d}.bin").write_bytes(os.urandom(size))
            names = sorted(path.name for path in folder.iterdir())
            back = Path(temporary, f"{kind}-back")
            store = open_store(f"{output}/{kind}")
            _compare(
                f"upload {kind}",
                partial(_upload, store, folder),
                _uploads(folder, names, kind),
                times,
            )
            ours = _download(store, back)
            _compare(f"download {kind}", ours, _downloads(back, names, kind), times)
            ours()
            problems += [name for name in names if (folder / name).read_bytes() != (back / name).read_bytes()]
            shutil.rmtree(folder)
            shutil.rmtree(back)
    return problems


def _upload(store: Store, folder: Path) -> None:
    Mirror(folder, store).sync()


def _download(store: Store, back: Path) -> Transfer:
    def transfer() -> None:
        shutil.rmtree(back, ignore_errors=True)
        download_files(store, store.entries(), back)

    return transfer


def _uploads(folder: Path, names: list[str], kind: str) -> dict[str, Transfer]:
    """Return the ways in which the client library alone can upload."""
    return _ways(
        partial(transfer_manager.upload_many_from_filenames, source_directory=str(folder)), names, kind
    )


def _downloads(back: Path, names: list[str], kind: str) -> dict[str, Transfer]:
    """Return the ways in which the client library alone can download."""
    target = back.with_name(f"{kind}-alone")
    target.mkdir(exist_ok=True)
    return _ways(
        partial(transfer_manager.download_many_to_path, destination_directory=str(target)), names, kind
    )


def _ways(transfer: Callable[..., object], names: list[str], kind: str) -> dict[str, Transfer]:
    bucket = Client().bucket(BUCKET)
    return {
        f"{workers} {worker_type}": partial(
            transfer, bucket, names, blob_name_prefix=f"alone/{kind}/", worker_type=worker_type,
            max_workers=workers, raise_exception=True,
        )
        for workers in WORKERS
        for worker_type in (transfer_manager.THREAD, transfer_manager.PROCESS)
    }  # fmt: skip


def _compare(label: str, ours: Transfer, others: dict[str, Transfer], times: int) -> None:
    ratios, fastest = [], ""
    for _ in range(times):
        alone = {name: _seconds(way) for name, way in others.items()}
        fastest = min(alone, key=lambda name: alone[name])
        mine = _seconds(ours)
        ratios.append(alone[fastest] / mine)
        print(f"{label}: {mine:.2f} s; alone: { {name: round(value, 2) for name, value in alone.items()} }")
    print(
        f"{label}: {statistics.median(ratios):.2f} of the speed of the fastest setting ({fastest}), "
        f"{min(ratios):.2f} to {max(ratios):.2f}, {times} rounds",
        flush=True,
    )


def _seconds(transfer: Transfer) -> float:
    started = time.perf_counter()
    transfer()
    return time.perf_counter() - started
