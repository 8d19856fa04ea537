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
from trainer.data.items import SPLITS, Item, Rejection
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
            "The source has no images: put those of each class into a folder that has its name, "
            "or correct the rows of the import file.",
            received=f"{shown_address(source)!r} with "
            f"{_counted(len(rejections), 'other file')}"
            f"{_examples(rejections, ', such as ')}",
        )


def require_few_rejected(candidates: int, rejections: Sequence[Rejection], max_rejected: float) -> None:
    """Raise DataError if more than the fraction `max_rejected` of the candidates is damaged.

    candidates: number of files that were tried, including the damaged ones.
    """
    damaged = [rejection for rejection in rejections if rejection.damaged]
    if len(damaged) > max_rejected * candidates:
        raise DataError(
            f"{len(damaged)} of {_counted(candidates, 'image')} can't be used{_examples(damaged, ': ')}. "
            f"{_unsupported_sentence(damaged)}That is more than data.max_rejected allows: repair or remove "
            f"them, or raise it.",
            received=f"data.max_rejected={max_rejected:g}",
        )


def require_classes(before: Iterable[str], kept: Iterable[str]) -> None:
    """Raise DataError if a class has no image left, or if there is only one. Arguments are labels."""
    classes, left = set(before), set(kept)
    if classes - left:
        raise DataError(
            "No image of a class could be decoded; repair them or remove the class.",
            received=f"{_listed(classes - left)}",
        )
    if len(classes) < 2:
        raise DataError(
            "There is only one class, so there is nothing to tell apart; there must be at least two, each in "
            "a folder of its own.",
            received=_listed(classes),
        )


def require_full_splits(items: Sequence[Item]) -> None:
    """Raise DataError if there are no training or no held-out images, or if a split lacks a class."""
    classes: defaultdict[str, set[str]] = defaultdict(set)
    for item in items:
        classes[item.split or ""].add(item.label)
    if "train" not in classes or len(classes) < 2:
        wanted = "train" if "train" not in classes else "validation"
        raise DataError(
            f"There are no images in {wanted}; add a folder {wanted}/, or give class folders alone with "
            f"several images each, of which a share is held out.",
            received=f"images in {_listed(classes)}",
        )
    everything = set().union(*classes.values())
    for split in SPLITS:
        missing = everything - classes[split] if split in classes else set()
        if missing:
            others = [other for other in SPLITS if missing & classes.get(other, set())]
            raise DataError(
                f"A class has images in {' and '.join(others)} but none in {split}, where equal content "
                f"counts once; add some, or remove the class.",
                received=_listed(missing),
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
        contradicting=tuple(group for group in several if _contradicts_in_a_split(group)),
    )


def _require_agreement(groups: Sequence[tuple[Item, ...]]) -> None:
    found = [pair for group in groups if (pair := _contradicting_pair(group))]
    if found:
        named = "; ".join(f"{one.name} and {other.name}" for one, other in found[:_EXAMPLES])
        raise DataError(
            "The same image has different labels in train and in a held-out split; keep it under the right "
            "one.",
            received=f"{_counted(len(found), 'image')}: {named}",
        )


def _contradicting_pair(group: tuple[Item, ...]) -> tuple[Item, Item] | None:
    """Return a training item and a held-out item with another label, or None."""
    held_out: dict[str, Item] = {}
    for item in group:
        if item.split != "train":
            held_out.setdefault(item.label, item)
    for item in group:
        other = next((each for label, each in held_out.items() if label != item.label), None)
        if item.split == "train" and other is not None:
            return item, other
    return None


def _contradicts_in_a_split(group: tuple[Item, ...]) -> bool:
    labels: defaultdict[str | None, set[str]] = defaultdict(set)
    for item in group:
        labels[item.split].add(item.label)
    return any(len(each) > 1 for each in labels.values())


def warnings_of(duplicates: Duplicates) -> tuple[str, ...]:
    """Return one sentence for each kind of duplicate found."""
    found = []
    pairs = Counter(
        tuple(split for split in SPLITS if split in {item.split for item in group})
        for group in duplicates.across_splits
    )
    for splits, count in pairs.items():
        verb = "appears" if count == 1 else "appear"
        found.append(f"{_counted(count, 'image')} {verb} in {' and '.join(splits)}; dataset.json lists them")
    if duplicates.contradicting:
        group = duplicates.contradicting[0]
        found.append(
            f"{_counted(len(duplicates.contradicting), 'image')} with several labels within a split, such as "
            f"{group[0].name} and {group[1].name}; dataset.json lists them"
        )
    return tuple(found)


def warnings_of_formats(converted: Mapping[str, int], rejections: Sequence[Rejection]) -> tuple[str, ...]:
    """Return a sentence about converted images and one about images in unsupported formats, if any.

    converted: number of converted images by format.
    """
    found = []
    if converted:
        found.append(
            f"{_of_formats(converted)} converted when read; the exported model itself does not read them, or "
            "reads them differently, while `trainer predict` converts them too"
        )
    if sentence := _unsupported_sentence(rejections):
        found.append(sentence.removesuffix(". "))
    return tuple(found)


def _unsupported_sentence(rejections: Iterable[Rejection]) -> str:
    """Return a sentence with the number of files in each unsupported format and the remedy.

    The sentence ends with a full stop and a space. It is empty if all formats are supported.
    """
    reasons = [rejection.reason.partition(": ") for rejection in rejections]
    counts = Counter(name for kind, _, name in reasons if kind == UNSUPPORTED)
    if not counts:
        return ""
    remedies = [REMEDIES[name] for name in sorted(counts) if name in REMEDIES]
    others = [name for name in counts if name not in REMEDIES]
    to_do = [f"install what reads them ({' and '.join(remedies)})"] if remedies else []
    to_do += ["convert them to JPEG or PNG"] if others or not remedies else []
    return f"{_of_formats(counts)} can't be read here: {', or '.join(to_do)}. "


def _of_formats(counts: Mapping[str, int]) -> str:
    """Return text such as '3 AVIF files and 1 HEIC file'."""
    texts = [_counted(count, f"{name} file") for name, count in sorted(counts.items())]
    return " and ".join([*([", ".join(texts[:-1])] if len(texts) > 1 else []), texts[-1]])


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _listed(names: Iterable[str]) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - _EXAMPLES} more" if len(ordered) > _EXAMPLES else ""
    return ", ".join(ordered[:_EXAMPLES]) + more


def _examples(rejections: Sequence[Rejection], before: str) -> str:
    if not rejections:
        return ""
    shown = [f"{rejection.name} ({rejection.reason})" for rejection in rejections[:_EXAMPLES]]
    more = f" and {len(rejections) - _EXAMPLES} more" if len(rejections) > _EXAMPLES else ""
    return before + ", ".join(shown) + more
