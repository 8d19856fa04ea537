"""Loading of the data set that a `DataSpec` describes, for training or for evaluation.

The steps are: list the images, decode every file once, validate, split. Shards were validated and split when
they were packed. A data set for evaluation is not split, and classes of the model may be missing in it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from trainer.data.checks import count_candidates, require_few_rejected, require_images, warnings_of_formats
from trainer.data.dataset import Dataset, Split, assemble, build_split, sort_classes
from trainer.data.fetch import list_images
from trainer.data.ingest import decode_images
from trainer.data.items import Rejection, all_normalized, normalized, numbers_of
from trainer.data.progress import Progress
from trainer.data.readers import SourceContents
from trainer.data.shards.packed import find_shards
from trainer.data.shards.reader import load_shards
from trainer.data.split import usable_items
from trainer.distributed import ProcessGroup, ProcessInfo
from trainer.errors import DataError
from trainer.spec.schema import DataSpec

_UNSPLIT = "all"
"""Name of the split for evaluation that contains the images without a split."""


def load_dataset(
    spec: DataSpec,
    cache_dir: Path,
    progress: Progress,
    on_rejected: Callable[[tuple[Rejection, ...]], None],
    group: ProcessGroup | None = None,
) -> Dataset:
    """Return the data set that `spec` describes, decoded and validated.

    Each process of the `group` decodes its share. on_rejected is called once with all rejections before the
    data set is validated; it is not called for shards. Raises DataError for images that cannot be used for
    training, UsageError for a source or cache folder that cannot be used, TemporaryError for a network or
    disk failure.
    """
    if (shards := find_shards(spec)) is not None:
        return load_shards(*shards, spec, cache_dir, group or ProcessGroup(ProcessInfo()))
    contents = list_images(spec, cache_dir, progress)
    contents = contents._replace(items=usable_items(contents.items, spec.held_out))
    if not contents.items:
        on_rejected(tuple(contents.rejections))
    require_images(contents.items, contents.rejections, spec.source)
    decoded = decode_images(contents.items, spec, cache_dir, progress, group)
    return assemble(contents, decoded, spec, on_rejected)


def load_labelled(
    spec: DataSpec, class_names: Sequence[str], cache_dir: Path, progress: Progress
) -> tuple[dict[str, Split], tuple[Rejection, ...]]:
    """Return the images of `spec.source` by split, and the rejections.

    Labels are indices into `class_names`. Raises DataError for a class that is not in `class_names`, and the
    errors of `load_dataset` for a source that cannot be read.
    """
    if (shards := find_shards(spec)) is not None:
        dataset = load_shards(*shards, spec, cache_dir, ProcessGroup(ProcessInfo()))
        return _renumber_labels(dataset, class_names), dataset.rejected
    contents = list_images(spec, cache_dir, progress)
    require_images(contents.items, contents.rejections, spec.source)
    _require_known({label for item in contents.items for label in item.classes}, class_names)
    return _decode_splits(contents, class_names, spec, cache_dir, progress)


def load_splits(
    spec: DataSpec, cache_dir: Path, progress: Progress
) -> tuple[dict[str, Split], tuple[str, ...], tuple[Rejection, ...]]:
    """Return the images of `spec.source` by split, the class names and the rejections.

    Nothing is split, and any number of classes and images will do. Raises the errors of `load_dataset` for a
    source that cannot be read.
    """
    if (shards := find_shards(spec)) is not None:
        dataset = load_shards(*shards, spec, cache_dir, ProcessGroup(ProcessInfo()))
        return dataset.splits, dataset.class_names, dataset.rejected
    contents = list_images(spec, cache_dir, progress)
    require_images(contents.items, contents.rejections, spec.source)
    class_names = sort_classes(label for item in contents.items for label in item.classes)
    splits, rejected = _decode_splits(contents, class_names, spec, cache_dir, progress)
    return splits, class_names, rejected


def _decode_splits(
    contents: SourceContents,
    class_names: Sequence[str],
    spec: DataSpec,
    cache_dir: Path,
    progress: Progress,
) -> tuple[dict[str, Split], tuple[Rejection, ...]]:
    for warning in contents.warnings:
        progress.on_message(warning)
    decoded = decode_images(contents.items, spec, cache_dir, progress)
    rejected = (*contents.rejections, *decoded.rejections)
    candidates = count_candidates(contents.items, contents.rejections)
    require_few_rejected(candidates, rejected, spec.max_rejected)
    for warning in warnings_of_formats(decoded.converted, rejected):
        progress.on_message(warning)
    require_images(decoded.items, rejected, spec.source)
    indices: defaultdict[str, list[int]] = defaultdict(list)
    for index, item in enumerate(decoded.items):
        indices[item.split or _UNSPLIT].append(index)
    class_numbers, is_multi = numbers_of(class_names), spec.labels == "multi"
    splits = {
        name: build_split(name, indices[name], decoded.items, decoded, class_numbers, is_multi)
        for name in indices
    }
    return splits, rejected


def _renumber_labels(dataset: Dataset, class_names: Sequence[str]) -> dict[str, Split]:
    """Return the splits with labels that are indices into `class_names`. Raises DataError."""
    _require_known(set(dataset.class_names), class_names)
    numbers = numbers_of(class_names)
    new_labels = np.asarray([numbers[normalized(name)] for name in dataset.class_names], np.int32)
    return {name: replace(split, labels=new_labels[split.labels]) for name, split in dataset.splits.items()}


def _require_known(labels: set[str], class_names: Sequence[str]) -> None:
    unknown = sorted({normalized(label) for label in labels} - set(all_normalized(class_names)))
    if unknown:
        raise DataError(
            "The data contain classes that the model does not have. Classes of the model: "
            f"{', '.join(class_names)[:200]}.",
            "Remove or rename these classes.",
            received=", ".join(unknown)[:200],
        )
