"""Implementation of `trainer shard`: data packed into TFRecord shards, with console output.

The last line of the output is the command that trains on the shards.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.cli.bootstrap import import_tensorflow, require_tensorflow, translate_memory_errors
from trainer.cli.console import Console
from trainer.cli.paths import absolute_source, require_apart
from trainer.errors import StoppedError
from trainer.shutdown import GracefulShutdown
from trainer.spec import load_spec

if TYPE_CHECKING:
    from trainer.data.shards.index import ShardManifest
    from trainer.storage.store import Store

_LOG_SECONDS = 30.0
_FEWER = "Use fewer --processes."


def shard_command(
    data: str,
    output: str,
    shard_mib: int,
    processes: int | None,
    settings: Sequence[str],
    share: tuple[int, int],
    cache_dir: Path,
    stop: GracefulShutdown,
) -> None:
    """Pack `data` into shards in `output`; `share` is (index, count) of the machines that do the work."""
    require_tensorflow()
    spec = load_spec(None, None, settings, {"data.source": absolute_source(data), "output": output}).data
    require_apart(spec.source, output)
    with Console(_LOG_SECONDS) as console, translate_memory_errors(_FEWER):
        console.banner()
        import_tensorflow()
        from trainer.data.shards.worker_pool import STOPPED, WorkerPool
        from trainer.data.shards.writer import make_shards
        from trainer.storage import open_store

        store = open_store(output)
        console.on_fact("shards", store.uri)
        count = processes or len(os.sched_getaffinity(0))
        try:
            with WorkerPool(count, cache_dir, import_tensorflow, *share, stop=stop) as pool:
                manifest = make_shards(spec, store, shard_mib << 20, pool, console)
        except StoppedError:
            raise StoppedError(*STOPPED) from None
        if manifest is None:
            console.on_fact(
                "done", f"the part of machine {share[0]} of {share[1]}; machine 0 completes the shards"
            )
            return
        _print_shards(manifest, store, console)


def _print_shards(manifest: ShardManifest, store: Store, console: Console) -> None:
    size = sum(shard.size for shard in manifest.shards)
    images = sum(shard.images for shard in manifest.shards)
    console.on_fact("done", f"{images:,} images in {len(manifest.shards)} shards, {size / 2**20:,.0f} MiB")
    for warning in manifest.warnings:
        console.on_message(warning)
    if manifest.rejected:
        console.on_message(f"{len(manifest.rejected)} files left out; shards.json lists them")
    console.on_fact("try", f"trainer train --data {shlex.quote(store.uri)}")
