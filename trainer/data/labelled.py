"""Labelled images for the evaluation of a trained model.

The result contains the images of each split in the source, or all images as a single split. Nothing is split
here, and classes of the model may be missing: the images are for evaluation, not for training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from trainer.data.checks import require_few_rejected, require_images, warnings_of_formats
from trainer.data.dataset import Split
from trainer.data.fetch import buckets_of, extraction_of, fetch_source
from trainer.data.image_store import Subset
from trainer.data.ingest import DecodedImages, ingest
from trainer.data.items import Rejection
from trainer.data.label_arrays import label_array
from trainer.data.labels import all_normalized, normalized, numbers_of
from trainer.data.progress import Progress
from trainer.data.readers import read_layout
from trainer.data.shards.packed import find_shards
from trainer.data.shards.reader import load_shards
from trainer.distributed import ProcessGroup, ProcessInfo
from trainer.errors import DataError
from trainer.spec.schema import DataSpec

_UNSPLIT = "all"


def load_labelled(
    spec: DataSpec, class_names: Sequence[str], cache_dir: Path, progress: Progress
) -> tuple[dict[str, Split], tuple[Rejection, ...]]:
    """Return the images of `spec.source` by split, and the rejections.

    Labels are indices into `class_names`. Raises DataError for a class that is not in `class_names`, and the
    errors of `load_dataset` for a source that cannot be read.
    """
    if (packed := find_shards(spec)) is not None:
        dataset = load_shards(*packed, spec, cache_dir, ProcessGroup(ProcessInfo()))
        _require_known(set(dataset.class_names), class_names)
        number = numbers_of(class_names)
        numbers = np.asarray([number[normalized(name)] for name in dataset.class_names], np.int32)
        splits = {
            name: replace(split, labels=numbers[split.labels]) for name, split in dataset.splits.items()
        }
        return splits, dataset.rejected
    root = fetch_source(spec.source, spec.checksum, cache_dir, spec.max_extracted_mib << 20, progress)
    read = read_layout(
        root, spec.layout, buckets_of(spec, cache_dir, progress), extraction_of(spec, cache_dir, progress),
        spec.labels,
    )  # fmt: skip
    candidates, left_out = read.items, read.rejections
    require_images(candidates, left_out, spec.source)
    _require_known({label for item in candidates for label in item.classes}, class_names)
    for warning in read.warnings:
        progress.say(warning)
    found = ingest(candidates, spec, cache_dir, progress)
    rejected = (*left_out, *found.rejections)
    tried = len(candidates) + sum(rejection.damaged for rejection in left_out)
    require_few_rejected(tried, rejected, spec.max_rejected)
    for warning in warnings_of_formats(found.converted, rejected):
        progress.say(warning)
    require_images(found.items, rejected, spec.source)
    names = dict.fromkeys(item.split or _UNSPLIT for item in found.items)
    return {name: _split(name, found, class_names, spec.labels == "multi") for name in names}, rejected


def _require_known(labels: set[str], class_names: Sequence[str]) -> None:
    unknown = sorted({normalized(label) for label in labels} - set(all_normalized(class_names)))
    if unknown:
        raise DataError(
            f"The model does not know these classes; it knows {', '.join(class_names)[:200]}.",
            received=f"{', '.join(unknown)[:200]}",
        )


def _split(name: str, found: DecodedImages, class_names: Sequence[str], is_multi: bool) -> Split:
    number = numbers_of(class_names)
    indices = [index for index, item in enumerate(found.items) if (item.split or _UNSPLIT) == name]
    items = tuple(found.items[index] for index in indices)
    labels = label_array(items, number, is_multi)
    numbers = found.rows[np.asarray(indices, np.int64)]
    contents = tuple(found.contents[index] for index in indices)
    return Split(name, items, labels, Subset(found.pixels, numbers), numbers, contents)
