"""Loading of the data set that a `DataSpec` describes.

The steps are: fetch, read the layout, decode every file once, validate, split. Shards were validated and
split when they were packed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from trainer.data.checks import require_images
from trainer.data.dataset import Dataset, assemble
from trainer.data.fetch import buckets_of, extraction_of, fetch_source
from trainer.data.ingest import ingest
from trainer.data.items import Rejection
from trainer.data.progress import Progress
from trainer.data.readers import read_layout
from trainer.data.shards.packed import find_shards
from trainer.data.shards.reader import load_shards
from trainer.data.split import usable_items
from trainer.distributed import ProcessGroup, ProcessInfo
from trainer.spec.schema import DataSpec


def load_dataset(
    spec: DataSpec,
    cache_dir: Path,
    progress: Progress,
    on_rejected: Callable[[tuple[Rejection, ...]], None],
    peers: ProcessGroup | None = None,
) -> Dataset:
    """Return the data set that `spec` describes, decoded and validated.

    Each of the `peers` decodes its share. on_rejected is called once with all rejections before the data set
    is validated; it is not called for shards. Raises DataError for images that cannot be used for training,
    UsageError for a source or cache folder that cannot be used, TemporaryError for a network or disk failure.
    """
    if (packed := find_shards(spec)) is not None:
        return load_shards(*packed, spec, cache_dir, peers or ProcessGroup(ProcessInfo()))
    root = fetch_source(spec.source, spec.checksum, cache_dir, spec.max_extracted_mib << 20, progress)
    read = read_layout(
        root, spec.layout, buckets_of(spec, cache_dir, progress), extraction_of(spec, cache_dir, progress),
        spec.labels,
    )  # fmt: skip
    candidates, left_out = usable_items(read.items, spec.held_out), read.rejections
    if not candidates:
        on_rejected(tuple(left_out))
    require_images(candidates, left_out, spec.source)
    found = ingest(candidates, spec, cache_dir, progress, peers)
    return assemble(candidates, left_out, found, spec, read.layout, on_rejected, read.warnings)
