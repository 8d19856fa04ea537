"""Validation of a data set before training.

The checks work on items, rejections and content hashes; they do not read files. They return groups of
duplicates, or raise a DataError that names the files or classes and the remedy.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from trainer.data.convert import UNSUPPORTED
from trainer.data.formats import REMEDIES
from trainer.data.items import SPLITS, THRESHOLDS, Item, Rejection
from trainer.errors import DataError
from trainer.sanitize import shown_address

_EXAMPLES = 3


@dataclass(frozen=True)
class Duplicates:
    """Groups of items with equal content; groups and their items are in the order of the items."""

    across_splits: tuple[tuple[Item, ...], ...]
    """Groups whose items are in several splits."""
    contradicting: tuple[tuple[Item, ...], ...]
    """Groups with several labels within one split."""


def require_images(items: Sequence[Item], rejections: Sequence[Rejection], source: str) -> None:
    """Raise DataError if the source has no images."""
    if not items:
        raise DataError(
            "The source has no images.",
            "Put the images of each class into a folder named after the class, or correct the rows of the "
            "import file.",
            received=f"{shown_address(source)!r} with "
            f"{_format_count(len(rejections), 'other file')}"
            f"{_format_examples(rejections, ', such as ')}",
        )


def count_candidates(items: Sequence[Item], rejections: Sequence[Rejection]) -> int:
    """Return the number of files that are images or should be: the items and the damaged files."""
    return len(items) + sum(rejection.damaged for rejection in rejections)


def require_few_rejected(candidates: int, rejections: Sequence[Rejection], max_rejected: float) -> None:
    """Raise DataError if more than the fraction `max_rejected` of the candidates is damaged.

    candidates: number of files that were tried, including the damaged ones.
    """
    damaged = [rejection for rejection in rejections if rejection.damaged]
    if len(damaged) > max_rejected * candidates:
        share = f"{len(damaged)} of {_format_count(candidates, 'image')}"
        raise DataError(
            f"{share} cannot be used{_format_examples(damaged, ': ')}. "
            f"{_unsupported_sentence(damaged)}This is more than data.max_rejected allows.",
            "Repair or remove these files, or raise data.max_rejected.",
            received=f"data.max_rejected={max_rejected:g}",
        )


def require_classes(candidates: Iterable[str], decoded: Iterable[str]) -> None:
    """Raise DataError if a class has no image left, or if there is only one. Arguments are labels."""
    classes, left = set(candidates), set(decoded)
    if classes - left:
        raise DataError(
            "A class has no image that can be decoded.",
            "Repair its images, or remove the class.",
            received=_join_names(classes - left),
        )
    if len(classes) < 2:
        raise DataError(
            "There is only one class.",
            "Add at least one other class, in a folder of its own.",
            received=_join_names(classes),
        )


def require_full_splits(items: Sequence[Item]) -> None:
    """Raise DataError if there are no training or no held-out images, or if a split lacks a class."""
    classes: defaultdict[str, set[str]] = defaultdict(set)
    for item in items:
        classes[item.split or ""].add(item.label)
    if "train" not in classes or len(classes) < 2:
        missing_split = "train" if "train" not in classes else "validation"
        raise DataError(
            f"There are no images in {missing_split}.",
            f"Add a folder {missing_split}/. Without split folders, put several images in each class folder; "
            "some of them are held out.",
            received=f"images in {_join_names(classes)}",
        )
    everything = set().union(*classes.values())
    for split in SPLITS:
        missing = everything - classes[split] if split in classes else set()
        if missing:
            others = [other for other in SPLITS if missing & classes.get(other, set())]
            raise DataError(
                f"A class has images in {' and '.join(others)}, but none in {split}. Identical images count "
                "once.",
                "Add images, or remove the class.",
                received=_join_names(missing),
            )


def find_duplicates(items: Sequence[Item], contents: Sequence[str]) -> Duplicates:
    """Group items with equal content; `contents` are the content hashes, one per item.

    Raises DataError if the same content is in train and in a held-out split under different labels.
    """
    groups: defaultdict[str, list[Item]] = defaultdict(list)
    for item, content in zip(items, contents, strict=True):
        groups[content].append(item)
    several = [tuple(group) for group in groups.values() if len(group) > 1]
    _require_agreement(several)
    return Duplicates(
        across_splits=tuple(group for group in several if len({item.split for item in group}) > 1),
        contradicting=tuple(group for group in several if _has_contradiction_in_a_split(group)),
    )


def _require_agreement(groups: Sequence[tuple[Item, ...]]) -> None:
    pairs = [pair for group in groups if (pair := _contradicting_pair(group))]
    if pairs:
        examples = "; ".join(f"{train.name} and {other.name}" for train, other in pairs[:_EXAMPLES])
        raise DataError(
            "The same image has different labels in train and in a held-out split.",
            "Keep it only under the correct label.",
            received=f"{_format_count(len(pairs), 'image')}: {examples}",
        )


def _contradicting_pair(group: tuple[Item, ...]) -> tuple[Item, Item] | None:
    """Return a training item and a held-out item with another label, or None."""
    held_out: dict[str, Item] = {}
    for item in group:
        if item.split != "train":
            held_out.setdefault(item.label, item)
    for item in group:
        other = next((other for label, other in held_out.items() if label != item.label), None)
        if item.split == "train" and other is not None:
            return item, other
    return None


def _has_contradiction_in_a_split(group: tuple[Item, ...]) -> bool:
    labels: defaultdict[str | None, set[str]] = defaultdict(set)
    for item in group:
        labels[item.split].add(item.label)
    return any(len(labels_of_split) > 1 for labels_of_split in labels.values())


def warnings_of(duplicates: Duplicates) -> tuple[str, ...]:
    """Return one sentence for each kind of duplicate."""
    warnings = []
    pairs = Counter(
        tuple(split for split in SPLITS if split in {item.split for item in group})
        for group in duplicates.across_splits
    )
    for splits, count in pairs.items():
        verb = "appears" if count == 1 else "appear"
        warnings.append(f"{_format_count(count, 'image')} {verb} in {' and '.join(splits)}; see dataset.json")
    if duplicates.contradicting:
        group = duplicates.contradicting[0]
        count = len(duplicates.contradicting)
        verb = "has" if count == 1 else "have"
        warnings.append(
            f"{_format_count(count, 'image')} {verb} several labels within a split, such as {group[0].name} "
            f"and {group[1].name}; see dataset.json"
        )
    return tuple(warnings)


def warnings_of_formats(converted: Mapping[str, int], rejections: Sequence[Rejection]) -> tuple[str, ...]:
    """Return a sentence about converted images and one about images in unsupported formats, if any.

    converted: number of converted images by format.
    """
    warnings = []
    if converted:
        verb = "was" if sum(converted.values()) == 1 else "were"
        warnings.append(
            f"{_list_formats(converted)} {verb} converted before decoding; the exported model cannot decode "
            "these formats, or decodes them differently, but `trainer predict` converts them too"
        )
    if sentence := _unsupported_sentence(rejections):
        warnings.append(sentence.removesuffix(". "))
    return tuple(warnings)


def _unsupported_sentence(rejections: Iterable[Rejection]) -> str:
    """Return a sentence with the number of files in each unsupported format and the remedy.

    The sentence ends with a full stop and a space. It is empty if all formats are supported.
    """
    counts = Counter(rejection.detail for rejection in rejections if rejection.kind == UNSUPPORTED)
    if not counts:
        return ""
    remedies = [REMEDIES[name] for name in sorted(counts) if name in REMEDIES]
    others = [name for name in counts if name not in REMEDIES]
    actions = [f"install a decoder ({' and '.join(remedies)})"] if remedies else []
    actions += ["convert them to JPEG or PNG"] if others or not remedies else []
    return f"{_list_formats(counts)} cannot be decoded: {', or '.join(actions)}. "


def _list_formats(counts: Mapping[str, int]) -> str:
    """Return text such as '3 AVIF files and 1 HEIC file'."""
    texts = [_format_count(count, f"{name} file") for name, count in sorted(counts.items())]
    return " and ".join([*([", ".join(texts[:-1])] if len(texts) > 1 else []), texts[-1]])


def _format_count(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _join_names(names: Iterable[str]) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - _EXAMPLES} more" if len(ordered) > _EXAMPLES else ""
    return ", ".join(ordered[:_EXAMPLES]) + more


def _format_examples(rejections: Sequence[Rejection], prefix: str) -> str:
    if not rejections:
        return ""
    examples = [f"{rejection.name} ({rejection.reason})" for rejection in rejections[:_EXAMPLES]]
    more = f" and {len(rejections) - _EXAMPLES} more" if len(rejections) > _EXAMPLES else ""
    return prefix + ", ".join(examples) + more


def require_labels(candidates: Sequence[Item], decoded: Sequence[Item]) -> None:
    """Raise DataError if a label has no image left, or if there are fewer than two labels."""
    labels, left = _labels_of(candidates), _labels_of(decoded)
    if labels - left:
        raise DataError(
            "A label has no image that can be decoded.",
            "Repair its images, or remove the label.",
            received=_join_names(labels - left),
        )
    if len(labels) < 2:
        raise DataError(
            "With data.labels=multi there must be at least two labels.",
            "For a single label that an image has or lacks, give each image one of two classes, such as yes "
            "and no, and set data.labels=single.",
            received=_join_names(labels) or "no label",
        )


def require_trained_labels(items: Sequence[Item]) -> None:
    """Raise DataError if there are no training or no held-out images, or if a label has no training image."""
    train = [item for item in items if item.split == "train"]
    held_out = [item for item in items if item.split not in ("train", THRESHOLDS)]
    if not train or not held_out:
        missing_split = "validation" if train else "train"
        raise DataError(
            f"There are no images in {missing_split}.",
            f"Add rows with {missing_split} in the column split, or remove the column, so that a part of the "
            "images is held out.",
            received=f"{len(items)} images in {'train' if train else 'others'}",
        )
    if missing := _labels_of(held_out) - _labels_of(train):
        raise DataError(
            "A label is on held-out images and on no training image.",
            "Add training images with this label, or remove the label.",
            received=_join_names(missing),
        )


def warnings_of_labels(items: Sequence[Item]) -> tuple[str, ...]:
    """Return a warning if some labels have no held-out image."""
    held_out = _labels_of([item for item in items if item.split not in ("train", THRESHOLDS)])
    if not (missing := _labels_of(items) - held_out):
        return ()
    count = len(missing)
    labels = "1 label has" if count == 1 else f"{count} labels have"
    return (f"{labels} no held-out image and cannot be evaluated: {_join_names(missing)}",)


def _labels_of(items: Sequence[Item]) -> set[str]:
    return {label for item in items for label in item.classes}
