"""Our transfers against the client library's fastest setting: many small files, and one large file.

Its concurrent chunk upload is not measured: it uses the XML API, which the emulator does not implement.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from google.cloud.storage import Client, transfer_manager
from helpers.bucket_server import BUCKET

from chaos.fixtures import emulated_bucket
from trainer.storage import open_store
from trainer.storage.mirror import Mirror, download_files
from trainer.storage.store import Store

SMALL = 2000
LARGE_BYTES = 500 << 20
WORKERS = (8, 32)
WORKER_TYPES = (transfer_manager.THREAD, transfer_manager.PROCESS)
MIN_RATIO = 0.8

Transfer = Callable[[], None]


def main(times: int, seed: int) -> list[str]:
    """Measure `times` rounds; return the transfers that corrupted a file or were too slow."""
    problems: list[str] = []
    with tempfile.TemporaryDirectory() as temporary, emulated_bucket("transfer") as output:
        for kind, sizes in (("small", [20_000] * SMALL), ("large", [LARGE_BYTES])):
            folder, back = Path(temporary, kind), Path(temporary, f"{kind}-back")
            names = _make_files(folder, sizes)
            store = open_store(f"{output}/{kind}")
            ours = partial(_upload, store, folder)
            problems += _compare(f"upload {kind}", ours, _uploads(folder, names, kind), times, [])
            ours, others = partial(_download, store, back), _downloads(_alone(back), names, kind)
            problems += _compare(f"download {kind}", ours, others, times, [back, _alone(back)])
            ours()
            problems += [name for name in names if (folder / name).read_bytes() != (back / name).read_bytes()]
            for path in (folder, back, _alone(back)):
                shutil.rmtree(path)
    return problems


def _make_files(folder: Path, sizes: list[int]) -> list[str]:
    folder.mkdir()
    for number, size in enumerate(sizes):
        (folder / f"{number:05d}.bin").write_bytes(os.urandom(size))
    return sorted(path.name for path in folder.iterdir())


def _upload(store: Store, folder: Path) -> None:
    Mirror(folder, store).sync()


def _download(store: Store, back: Path) -> None:
    download_files(store, store.entries(), back)


def _uploads(folder: Path, names: list[str], kind: str) -> dict[str, Transfer]:
    """Return the upload variants of the client library."""
    return _variants(
        partial(transfer_manager.upload_many_from_filenames, source_directory=str(folder)), names, kind
    )


def _alone(back: Path) -> Path:
    return back.with_name(f"{back.name}-alone")


def _downloads(target: Path, names: list[str], kind: str) -> dict[str, Transfer]:
    """Return the download variants of the client library, to `target`."""
    variants = _variants(
        partial(transfer_manager.download_many_to_path, destination_directory=str(target)), names, kind
    )
    if len(names) == 1:
        blob = Client().bucket(BUCKET).blob(f"alone/{kind}/{names[0]}")
        variants |= {
            f"{worker_type} in chunks": partial(
                transfer_manager.download_chunks_concurrently, blob, str(target / names[0]),
                worker_type=worker_type,
            )
            for worker_type in WORKER_TYPES
        }  # fmt: skip
    return variants


def _variants(transfer: Callable[..., None], names: list[str], kind: str) -> dict[str, Transfer]:
    bucket = Client().bucket(BUCKET)
    return {
        f"{workers} {worker_type}": partial(
            transfer, bucket, names, blob_name_prefix=f"alone/{kind}/", worker_type=worker_type,
            max_workers=workers, raise_exception=True,
        )
        for workers in (WORKERS if len(names) > 1 else (1,))
        for worker_type in WORKER_TYPES
    }  # fmt: skip


def _compare(
    label: str, ours: Transfer, others: dict[str, Transfer], times: int, targets: list[Path]
) -> list[str]:
    """Measure all variants, in another order each round, and into empty folders `targets`."""
    variants, ratios, fastest = {"ours": ours, **others}, [], ""
    for turn in range(times):
        names = list(variants)[turn % len(variants) :] + list(variants)[: turn % len(variants)]
        seconds = {name: _seconds(variants[name], targets) for name in names}
        fastest = min(others, key=lambda name: seconds[name])
        ratios.append(seconds[fastest] / seconds["ours"])
        print(f"{label}: { {name: round(value, 2) for name, value in seconds.items()} }")
    median = statistics.median(ratios)
    print(
        f"{label}: {median:.2f} of the speed of the fastest setting ({fastest}), "
        f"{min(ratios):.2f} to {max(ratios):.2f}, {times} rounds",
        flush=True,
    )
    return [] if median >= MIN_RATIO else [f"{label}: {median:.2f} is below {MIN_RATIO}"]


def _seconds(transfer: Transfer, targets: list[Path]) -> float:
    for target in targets:
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
    started = time.perf_counter()
    transfer()
    return time.perf_counter() - started
