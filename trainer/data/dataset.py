"""Data sets for training.

A `Dataset` is assembled from the decoded images of a source. It holds the items, labels and pixels of each
split, and a summary of the images, rejections and warnings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.data.checks import (
    Duplicates,
    count_candidates,
    find_duplicates,
    require_classes,
    require_few_rejected,
    require_full_splits,
    require_labels,
    require_trained_labels,
    warnings_of,
    warnings_of_formats,
    warnings_of_labels,
)
from trainer.data.digests import content_digest, split_digest
from trainer.data.groups import group_numbers, warnings_of_groups, with_duplicate_groups
from trainer.data.image_store import Rows, Subset
from trainer.data.ingest import DecodedImages
from trainer.data.items import SPLITS, Item, Rejection, Source, label_array, label_counts, label_texts
from trainer.data.near_duplicates import build_thumbnails
from trainer.data.readers import SourceContents
from trainer.data.sampler import Shards, initial_hosts
from trainer.data.split import BY_SOURCE, STRATIFIED, assign_splits, training_items, with_thresholds
from trainer.sanitize import shown_address
from trainer.spec.schema import DataSpec

_MAX_LINES = 5
"""Maximum number of lines of class names."""


@dataclass(frozen=True)
class Split:
    """Images of one split, ordered by name or in the order of their shards."""

    name: str
    items: Sequence[Source]
    labels: NDArray[np.int32]
    """Indices into the class names of the data set, int32 [len(items)]. With data.labels=multi int32
    [len(items), classes], with 1 for each label of an image."""
    pixels: Rows
    numbers: NDArray[np.int64]
    """Index of each item among the candidates, before rejections, or in the shards, int64 [len(items)]."""
    contents: Sequence[str] = ()
    """SHA-256 of the bytes of each item; empty if not known."""
    groups: NDArray[np.int64] | None = None
    """Number of the group of each item, see data.group, int64 [len(items)]; None without groups."""
    shards: Shards | None = None
    """Distribution over shards; None if the source is not sharded."""

    def owners(self, hosts: int) -> NDArray[np.int64]:
        """Return the process, of `hosts`, that is responsible for each item, int64 [len(items)]."""
        if self.shards is not None:
            # Adjacent items are in the same shard, which then only one process needs.
            return np.arange(len(self.items)) * hosts // len(self.items)
        return initial_hosts(self.numbers, hosts)


@dataclass(frozen=True)
class Dataset:
    """All splits of a data set, and their summary."""

    class_names: tuple[str, ...]
    splits: dict[str, Split]
    """'train', and at least one of 'validation' and 'test', in this order. With data.labels=multi also
    'thresholds', after 'train'."""
    rejected: tuple[Rejection, ...]
    summary: dict[str, Any]
    """Contents of dataset.json; see `summarize`."""
    digest: str
    """SHA-256 over the splits, labels, names and contents of all images, 64 hex digits."""
    warnings: tuple[str, ...]

    @property
    def train(self) -> Split:
        """The training images."""
        return self.splits["train"]

    @property
    def held_out(self) -> Split:
        """The validation images: 'validation', or 'test' if there is no validation split."""
        return self.splits["validation"] if "validation" in self.splits else self.splits["test"]


def assemble(
    contents: SourceContents,
    decoded: DecodedImages,
    spec: DataSpec,
    on_rejected: Callable[[tuple[Rejection, ...]], None],
) -> Dataset:
    """Validate the decoded images, split them if the source has no split, and return the data set.

    contents: the images and rejections of the source before decoding. on_rejected is called once with all
    rejections, sorted by name, before any check. Raises DataError.
    """
    rejections = [*contents.rejections, *decoded.rejections]
    rejected = tuple(sorted(rejections, key=lambda rejection: rejection.name))
    on_rejected(rejected)
    candidates = count_candidates(contents.items, contents.rejections)
    require_few_rejected(candidates, rejected, spec.max_rejected)
    is_multi = spec.labels == "multi"
    if spec.group == "duplicates":
        decoded = _with_duplicate_groups(decoded)
    if spec.held_out == "train" and all(item.split is None for item in decoded.items):
        decoded = _select_training_part(decoded, spec.validation_fraction, is_multi)
    split_items = _split_multi_label if is_multi else _split_single_label
    items, split_by = split_items(contents.items, decoded, spec)
    warnings = (
        *contents.warnings,
        *warnings_of_groups(items),
        *(warnings_of_labels(items) if is_multi else ()),
    )
    duplicates = find_duplicates(items, decoded.contents)
    origin = (spec.source, contents.layout, split_by)
    return _build_dataset(items, decoded, rejected, duplicates, origin, warnings, is_multi)


def _with_duplicate_groups(decoded: DecodedImages) -> DecodedImages:
    thumbnails = build_thumbnails(Subset(decoded.pixels, decoded.rows), len(decoded.items))
    return replace(decoded, items=tuple(with_duplicate_groups(decoded.items, thumbnails)))


def _split_single_label(
    candidates: Sequence[Item], decoded: DecodedImages, spec: DataSpec
) -> tuple[list[Item], str]:
    """Return the items with their splits assigned, and the origin of the split. Raises DataError."""
    require_classes((item.label for item in candidates), (item.label for item in decoded.items))
    items = assign_splits(decoded.items, decoded.contents, spec.validation_fraction)
    require_full_splits(items)
    return items, BY_SOURCE if items == list(decoded.items) else STRATIFIED


def _split_multi_label(
    candidates: Sequence[Item], decoded: DecodedImages, spec: DataSpec
) -> tuple[list[Item], str]:
    """Do the same as `_split_single_label` for images with any number of labels."""
    require_labels(candidates, decoded.items)
    items = assign_splits(decoded.items, decoded.contents, spec.validation_fraction, is_multi=True)
    require_trained_labels(items)
    split_by = BY_SOURCE if items == list(decoded.items) else STRATIFIED
    return with_thresholds(items, decoded.contents, spec.threshold_fraction), split_by


def _select_training_part(decoded: DecodedImages, fraction: float, is_multi: bool) -> DecodedImages:
    """Return the decoded images without those that a run on all images would hold out."""
    indices = training_items(decoded.items, decoded.contents, fraction, is_multi)
    return replace(
        decoded,
        items=tuple(decoded.items[index] for index in indices),
        contents=tuple(decoded.contents[index] for index in indices),
        rows=decoded.rows[np.asarray(indices, np.int64)],
    )


def _build_dataset(
    items: Sequence[Item],
    decoded: DecodedImages,
    rejected: tuple[Rejection, ...],
    duplicates: Duplicates,
    origin: tuple[str, str, str],
    warnings: Sequence[str],
    is_multi: bool,
) -> Dataset:
    class_names = sort_classes(label for item in items for label in item.classes)
    numbers = {label: number for number, label in enumerate(class_names)}
    indices = {name: [i for i, item in enumerate(items) if item.split == name] for name in SPLITS}
    splits = {
        name: build_split(name, indices[name], items, decoded, numbers, is_multi)
        for name in SPLITS
        if indices[name]
    }
    digest = content_digest(items, decoded.contents)
    warnings = (*warnings, *warnings_of_formats(decoded.converted, rejected), *warnings_of(duplicates))
    summary = summarize(class_names, splits, rejected, duplicates, origin)
    summary |= {"converted": dict(decoded.converted)}
    summary |= {"digest": f"sha256:{digest}", "warnings": list(warnings)}
    summary |= {"labels": "multi"} if is_multi else {}
    return Dataset(class_names, splits, rejected, summary, digest, warnings)


def sort_classes(labels: Iterable[str]) -> tuple[str, ...]:
    """Return the different labels by name, but numbers by their value."""
    return tuple(sorted(set(labels), key=_class_order))


def _class_order(name: str) -> tuple[int, int, str]:
    """Sort key: by name, but all-digit names by their number, so that 2 comes before 10."""
    return (0, int(name), name) if name.isascii() and name.isdecimal() and len(name) < 19 else (1, 0, name)


def build_split(
    name: str,
    indices: Sequence[int],
    items: Sequence[Item],
    decoded: DecodedImages,
    numbers: Mapping[str, int],
    is_multi: bool,
) -> Split:
    """Return the split `name` with the decoded images at `indices`.

    items: one for each decoded image. numbers: the index of each class.
    """
    rows = decoded.rows[np.asarray(indices, np.int64)]
    return Split(
        name=name,
        items=tuple(items[index] for index in indices),
        labels=label_array([items[index] for index in indices], numbers, is_multi),
        pixels=Subset(decoded.pixels, rows),
        numbers=rows,
        contents=tuple(decoded.contents[index] for index in indices),
        groups=group_numbers([items[index] for index in indices]),
    )


def summarize(
    class_names: tuple[str, ...],
    splits: dict[str, Split],
    rejected: Sequence[Rejection],
    duplicates: Duplicates,
    origin: tuple[str, str, str],
) -> dict[str, Any]:
    """Return the contents of dataset.json, except for the digest, the warnings and the converted formats.

    {"source", "layout", "split_by": 'source' or 'stratified', "class_names": [...],
    "rejected": {"count", "damaged", "reasons": {reason: n}},
    "splits": {split: {"images": n, "classes": {class: n}, "unlabelled": n (only with data.labels=multi),
    "digest": of its images, if known}},
    "duplicates_across_splits" and "contradicting_duplicates":
    {"count", "images": [[{"split", "label", "name"}, ...], ...]}}
    """
    source, layout, split_by = origin
    return {
        "source": shown_address(source),
        "layout": layout,
        "split_by": split_by,
        "class_names": list(class_names),
        "splits": {name: _summarize_split(split, class_names) for name, split in splits.items()},
        "rejected": {
            "count": len(rejected),
            "damaged": sum(rejection.damaged for rejection in rejected),
            "reasons": dict(Counter(rejection.kind for rejection in rejected)),
        },
        "duplicates_across_splits": _summarize_groups(duplicates.across_splits),
        "contradicting_duplicates": _summarize_groups(duplicates.contradicting),
    }


def _summarize_split(split: Split, class_names: tuple[str, ...]) -> dict[str, Any]:
    counts = label_counts(split.labels, len(class_names)).tolist()
    summary: dict[str, Any] = {"images": len(split.items)}
    summary["classes"] = dict(zip(class_names, counts, strict=True))
    if split.labels.ndim == 2:
        summary["unlabelled"] = int(np.sum(~split.labels.any(axis=1)))
    if not split.contents:
        return summary
    labels = label_texts(split.labels, class_names)
    names = [item.name for item in split.items]
    return summary | {"digest": f"sha256:{split_digest(names, labels, split.contents)}"}


def _summarize_groups(groups: Sequence[Sequence[Item]]) -> dict[str, Any]:
    images = [
        [{"split": item.split, "label": item.label, "name": item.name} for item in group] for group in groups
    ]
    return {"count": len(groups), "images": images}


def format_contents(dataset: Dataset, width: int = 80) -> str:
    """Return `Found 2000 train and 1000 validation images in 2 classes: cats, dogs`.

    Class names that do not fit into `width` characters follow on separate lines. A long list is cut off, with
    the number of remaining names.
    """
    counts = [f"{len(split.items)} {name}" for name, split in dataset.splits.items()]
    images = f"{', '.join(counts[:-1])} and {counts[-1]} images"
    names = dataset.class_names
    classes = "with {} labels" if dataset.train.labels.ndim == 2 else "in {} classes"
    start = f"Found {images} {classes.format(len(names))}:"
    line = f"{start} {', '.join(names)}"
    return line if len(line) <= width else "\n  ".join([start, *_lines_of(names, width - 2)])


def _lines_of(names: Sequence[str], width: int) -> list[str]:
    """Return lines of at most `width` characters, unless a single name is longer."""
    lines: list[str] = []
    for number, name in enumerate(names):
        if lines and len(lines[-1]) + len(name) + 3 <= width:
            lines[-1] += f", {name}"
        elif len(lines) < _MAX_LINES:
            lines.append(name)
        else:
            lines.append(f"and {len(names) - number} more")
            break
    return [f"{line}," for line in lines[:-1]] + lines[-1:]
