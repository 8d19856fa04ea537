"""Images ready to be trained on.

In: what was found in a source and decoded. Out: a `Dataset`: for each split its items, labels and pixels,
and an account of what was found, left out and doubtful.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.data.batches import Shards, first_owners
from trainer.data.checks import (
    Duplicates,
    find_duplicates,
    require_classes,
    require_few_rejected,
    require_full_splits,
    warnings_of,
    warnings_of_formats,
)
from trainer.data.contents import content_digest, split_digest
from trainer.data.holding import Rows, View
from trainer.data.ingest import Ingested
from trainer.data.items import SPLITS, Item, Rejection, Source
from trainer.data.label_arrays import label_array, label_counts, label_texts
from trainer.data.label_checks import require_labels, require_trained_labels, warnings_of_labels
from trainer.data.split import BY_SOURCE, STRATIFIED, assign_splits, training_items, with_thresholds
from trainer.printable import shown_address
from trainer.spec.schema import DataSpec

_MOST_LINES = 5
"""Of class names."""


@dataclass(frozen=True)
class Split:
    """The images of one split, in the order of their names, or as they lie in shards."""

    name: str
    items: Sequence[Source]
    labels: NDArray[np.int32]
    """The index in the data set's class names, int32 [len(items)]; with data.labels multi int32 [len(items),
    classes], 1 for each label that an image has."""
    pixels: Rows
    numbers: NDArray[np.int64]
    """The place of each item among all that was found, before any was left out, int64 [len(items)]."""
    contents: Sequence[str] = ()
    """SHA-256 of each item's bytes as they were read; empty if not known."""
    shards: Shards | None = None
    """Where it lies in shards; None if it doesn't."""

    def owners(self, hosts: int) -> NDArray[np.int64]:
        """Return which of so many processes answers for each item, int64 [len(items)]."""
        if self.shards is not None:
            # Neighbours lie in one shard, which then only one of them needs.
            return np.arange(len(self.items)) * hosts // len(self.items)
        return first_owners(self.numbers, hosts)


@dataclass(frozen=True)
class Dataset:
    """All splits, and what is to be said of them."""

    class_names: tuple[str, ...]
    splits: dict[str, Split]
    """'train', and at least one of 'validation' and 'test', in this order; with data.labels multi also
    'thresholds', after 'train'."""
    rejected: tuple[Rejection, ...]
    summary: dict[str, Any]
    """What goes to dataset.json; see `summarize`."""
    digest: str
    """SHA-256 over the splits, labels, names and contents of all images, 64 hex digits."""
    warnings: tuple[str, ...]

    @property
    def train(self) -> Split:
        """The images to train on."""
        return self.splits["train"]

    @property
    def held_out(self) -> Split:
        """The images to validate on: 'validation', or 'test' where there is no other."""
        return self.splits["validation"] if "validation" in self.splits else self.splits["test"]


def assemble(
    candidates: Sequence[Item],
    left_out: Sequence[Rejection],
    found: Ingested,
    spec: DataSpec,
    layout: str,
    on_rejected: Callable[[tuple[Rejection, ...]], None],
    warnings: Sequence[str] = (),
) -> Dataset:
    """Return the data set that was found: checked, and split where the source didn't.

    on_rejected is called with all that was left out, before anything is made of it. `warnings` are those of
    the layout. Raises DataError.
    """
    rejected = tuple(sorted([*left_out, *found.rejections], key=lambda rejection: rejection.name))
    on_rejected(rejected)
    tried = len(candidates) + sum(rejection.damaged for rejection in left_out)
    require_few_rejected(tried, rejected, spec.max_rejected)
    is_multi = spec.labels == "multi"
    if spec.held_out == "train" and all(item.split is None for item in found.items):
        found = _training_part(found, spec.validation_fraction, is_multi)
    items, split_by = (_arranged_several if is_multi else _arranged)(candidates, found, spec)
    warnings = (*warnings, *warnings_of_labels(items)) if is_multi else warnings
    duplicates = find_duplicates(items, found.contents)
    return _assembled(items, found, rejected, duplicates, (spec.source, layout, split_by), warnings, is_multi)


def _arranged(candidates: Sequence[Item], found: Ingested, spec: DataSpec) -> tuple[list[Item], str]:
    """Return the items, each in a split, and who split them. Raises DataError."""
    require_classes((item.label for item in candidates), (item.label for item in found.items))
    items = assign_splits(found.items, found.contents, spec.validation_fraction)
    require_full_splits(items)
    return items, BY_SOURCE if items == list(found.items) else STRATIFIED


def _arranged_several(candidates: Sequence[Item], found: Ingested, spec: DataSpec) -> tuple[list[Item], str]:
    """Return the same where images have any number of labels."""
    require_labels(candidates, found.items)
    items = assign_splits(found.items, found.contents, spec.validation_fraction, is_multi=True)
    require_trained_labels(items)
    split_by = BY_SOURCE if items == list(found.items) else STRATIFIED
    return with_thresholds(items, found.contents, spec.threshold_fraction), split_by


def _training_part(found: Ingested, fraction: float, is_multi: bool) -> Ingested:
    """Return what was decoded without the images that a run on all of it would hold out."""
    kept = training_items(found.items, found.contents, fraction, is_multi)
    return replace(
        found,
        items=tuple(found.items[index] for index in kept),
        contents=tuple(found.contents[index] for index in kept),
        rows=found.rows[np.asarray(kept, np.int64)],
    )


def _assembled(
    items: Sequence[Item],
    found: Ingested,
    rejected: tuple[Rejection, ...],
    duplicates: Duplicates,
    origin: tuple[str, str, str],
    warnings: Sequence[str],
    is_multi: bool,
) -> Dataset:
    class_names = tuple(sorted({label for item in items for label in item.classes}, key=_class_order))
    splits = {name: _split(name, items, found, class_names, is_multi) for name in SPLITS}
    splits = {name: split for name, split in splits.items() if split.items}
    digest = content_digest(items, found.contents)
    warnings = (*warnings, *warnings_of_formats(found.converted, rejected), *warnings_of(duplicates))
    summary = summarize(class_names, splits, rejected, duplicates, origin)
    summary |= {"converted": dict(found.converted)}
    summary |= {"digest": f"sha256:{digest}", "warnings": list(warnings)}
    summary |= {"labels": "multi"} if is_multi else {}
    return Dataset(class_names, splits, rejected, summary, digest, warnings)


def _class_order(name: str) -> tuple[int, int, str]:
    """Order by name, but names that are all digits by number: 2 before 10."""
    return (0, int(name), name) if name.isascii() and name.isdecimal() and len(name) < 19 else (1, 0, name)


def _split(
    name: str, items: Sequence[Item], found: Ingested, class_names: tuple[str, ...], is_multi: bool
) -> Split:
    indices = [index for index, item in enumerate(items) if item.split == name]
    number = {label: value for value, label in enumerate(class_names)}
    return Split(
        name=name,
        items=tuple(items[index] for index in indices),
        labels=label_array([items[index] for index in indices], number, is_multi),
        pixels=View(found.pixels, found.rows[np.asarray(indices, np.int64)]),
        numbers=found.rows[np.asarray(indices, np.int64)],
        contents=tuple(found.contents[index] for index in indices),
    )


def summarize(
    class_names: tuple[str, ...],
    splits: dict[str, Split],
    rejected: Sequence[Rejection],
    duplicates: Duplicates,
    origin: tuple[str, str, str],
) -> dict[str, Any]:
    """Return plain values for dataset.json, all but the digest, the warnings and what was converted.

    {"source", "layout", "split_by": 'source' or 'stratified', "class_names": [...],
    "rejected": {"count", "damaged", "reasons": {reason: n}},
    "splits": {split: {"images": n, "classes": {class: n}, "digest": of its images, if known}},
    "duplicates_across_splits" and "contradicting_duplicates":
    {"count", "images": [[{"split", "label", "name"}, ...], ...]}}
    """
    source, layout, split_by = origin
    return {
        "source": shown_address(source),
        "layout": layout,
        "split_by": split_by,
        "class_names": list(class_names),
        "splits": {name: _counts(split, class_names) for name, split in splits.items()},
        "rejected": {
            "count": len(rejected),
            "damaged": sum(rejection.damaged for rejection in rejected),
            # A reason's first words are its kind; what follows is of one file.
            "reasons": dict(Counter(rejection.reason.split(":")[0] for rejection in rejected)),
        },
        "duplicates_across_splits": _groups(duplicates.across_splits),
        "contradicting_duplicates": _groups(duplicates.contradicting),
    }


def _counts(split: Split, class_names: tuple[str, ...]) -> dict[str, Any]:
    counts = label_counts(split.labels, len(class_names)).tolist()
    found: dict[str, Any] = {"images": len(split.items)}
    found["classes"] = dict(zip(class_names, counts, strict=True))
    if split.labels.ndim == 2:
        found["unlabelled"] = int(np.sum(~split.labels.any(axis=1)))
    if not split.contents:
        return found
    labels = label_texts(split.labels, class_names)
    names = [item.name for item in split.items]
    return found | {"digest": f"sha256:{split_digest(names, labels, split.contents)}"}


def _groups(groups: Sequence[Sequence[Item]]) -> dict[str, Any]:
    named = [
        [{"split": item.split, "label": item.label, "name": item.name} for item in group] for group in groups
    ]
    return {"count": len(groups), "images": named}


def format_found(dataset: Dataset, width: int = 80) -> str:
    """Return `Found 2000 train and 1000 validation images in 2 classes: cats, dogs`.

    Class names that would pass `width` characters follow on lines of their own; of very many the last ones
    are counted.
    """
    counts = [f"{len(split.items)} {name}" for name, split in dataset.splits.items()]
    counted = f"{', '.join(counts[:-1])} and {counts[-1]}"
    names = dataset.class_names
    kind = "with {} labels" if dataset.train.labels.ndim == 2 else "in {} classes"
    start = f"Found {counted} images {kind.format(len(names))}:"
    line = f"{start} {', '.join(names)}"
    return line if len(line) <= width else "\n  ".join([start, *_lines_of(names, width - 2)])


def _lines_of(names: Sequence[str], width: int) -> list[str]:
    """Return lines of at most `width` characters, unless a single name is longer."""
    lines: list[str] = []
    for number, name in enumerate(names):
        if lines and len(lines[-1]) + len(name) + 3 <= width:
            lines[-1] += f", {name}"
        elif len(lines) < _MOST_LINES:
            lines.append(name)
        else:
            lines.append(f"and {len(names) - number} more")
            break
    return [f"{line}," for line in lines[:-1]] + lines[-1:]
