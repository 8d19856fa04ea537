"""Audit of a data set: what is wrong with the images and their labels.

`audit_images` combines the checks of this package. What it cannot check, for want of features or of classes,
is None in the result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.audit.label_errors import FarImage, Suspect, find_far_images, find_label_errors
from trainer.audit.measures import Measures, measure_images
from trainer.audit.noise import Association, NoiseGroups, compare_groups, find_noise_groups
from trainer.audit.odd import OddImage, find_odd_images
from trainer.audit.sequences import Sequences, find_sequences
from trainer.audit.shortcuts import Shortcuts, find_shortcuts
from trainer.data.dataset import Split
from trainer.data.image_store import Pixels
from trainer.data.items import Source
from trainer.data.near_duplicates import DuplicateGroup, build_thumbnails, find_near_duplicates
from trainer.data.progress import Progress

Ints = NDArray[np.int64]


class JoinedPixels:
    """Pixels of several splits, one after another."""

    def __init__(self, splits: Sequence[Split]) -> None:
        self._splits = splits
        self._starts = np.cumsum([0, *(len(split.items) for split in splits)])
        self.shape: tuple[int, ...] = (int(self._starts[-1]), *splits[0].pixels.shape[1:])

    def cache(self, indices: NDArray[np.integer]) -> None:
        """Do nothing: images are decoded when they are gathered."""

    def prefetch(self, *passes: NDArray[np.integer]) -> None:
        """Do nothing, as `cache`."""

    def gather(self, indices: NDArray[np.integer]) -> Pixels:
        """Return copies of the images at `indices`, integers [n], as uint8 [n, height, width, channels]."""
        owners = np.searchsorted(self._starts, indices, side="right") - 1
        images = np.empty((len(indices), *self.shape[1:]), np.uint8)
        for number in np.unique(owners):
            rows = owners == number
            images[rows] = self._splits[number].pixels.gather(
                np.asarray(indices)[rows] - self._starts[number]
            )
        return images


@dataclass(frozen=True, eq=False)
class AuditedImages:
    """Images of all splits, one after another."""

    items: tuple[Source, ...]
    labels: Ints | None
    """[images], indices of `class_names`; None with several labels per image."""
    class_names: tuple[str, ...]
    splits: NDArray[np.str_]
    """[images], name of the split of each image."""
    pixels: JoinedPixels
    features: NDArray[np.float32] | None
    """[images, width], of a pretrained backbone; None without one."""
    groups: Ints | None
    """[images], see data.group."""

    @property
    def is_train(self) -> NDArray[np.bool_]:
        """Whether images are training images; all are if the source has no splits."""
        is_train = np.asarray(np.isin(self.splits, ["train", "all"]))
        return is_train if is_train.any() else np.ones(len(self.items), bool)


@dataclass(frozen=True, eq=False)
class Audit:
    """Findings of an audit; rows are numbers of images in `images`."""

    images: AuditedImages
    measures: Measures
    duplicates: list[DuplicateGroup]
    sequences: Sequences | None
    odd: list[OddImage]
    suspects: list[Suspect] | None
    """None without features, with several labels per image, or with too few images or classes."""
    far: list[FarImage] | None
    """None as `suspects`."""
    shortcuts: Shortcuts | None
    """None with several labels per image, or with too few images or classes."""
    noise: NoiseGroups
    associations: list[Association]
    """Dependence of the noise groups on class, split and folder."""

    @property
    def probable_errors(self) -> list[Suspect]:
        """The suspects whose label is probably wrong."""
        return [suspect for suspect in self.suspects or [] if suspect.is_probable]

    @property
    def leaks(self) -> list[DuplicateGroup]:
        """The groups of near-duplicates in training and in another split."""
        is_train = self.images.is_train
        return [group for group in self.duplicates if len(set(is_train[list(group.rows)].tolist())) > 1]

    @property
    def contradictions(self) -> list[DuplicateGroup]:
        """The groups of near-duplicates with several labels."""
        labels = self.images.labels
        if labels is None:
            return []
        return [group for group in self.duplicates if len(set(labels[list(group.rows)].tolist())) > 1]


def join_splits(
    splits: Mapping[str, Split],
    class_names: tuple[str, ...],
    features: Mapping[str, NDArray[np.float32]] | None = None,
) -> AuditedImages:
    """Return the images of all `splits`, with their `features` by split, if there are any."""
    parts = list(splits.values())
    is_multi = any(split.labels.ndim == 2 for split in parts)
    return AuditedImages(
        items=tuple(item for split in parts for item in split.items),
        labels=None if is_multi else np.concatenate([split.labels for split in parts]).astype(np.int64),
        class_names=class_names,
        splits=np.concatenate([np.full(len(split.items), split.name) for split in parts]),
        pixels=JoinedPixels(parts),
        features=None if features is None else np.concatenate([features[split.name] for split in parts]),
        groups=_join_groups(parts),
    )


def _join_groups(splits: Sequence[Split]) -> Ints | None:
    if all(split.groups is None for split in splits):
        return None
    parts, start = [], 0
    for split in splits:
        numbers = np.arange(len(split.items)) if split.groups is None else split.groups
        parts.append(numbers + start)
        start += int(numbers.max(initial=-1)) + 1
    return np.concatenate(parts)


def audit_images(images: AuditedImages, max_pixels: int, progress: Progress) -> Audit:
    """Return the findings on `images`; see `measure_images` for `max_pixels`."""
    measures = measure_images(images.items, max_pixels, progress)
    thumbnails = build_thumbnails(images.pixels, len(images.items))
    names = [item.name for item in images.items]
    noise = find_noise_groups(measures.noise)
    return Audit(
        images=images,
        measures=measures,
        duplicates=find_near_duplicates(thumbnails, images.features),
        sequences=find_sequences(thumbnails, names, images.is_train),
        odd=find_odd_images(measures),
        suspects=_find_suspects(images),
        far=_find_far(images),
        shortcuts=_find_shortcuts(images, measures),
        noise=noise,
        associations=compare_groups(noise.groups, _noise_properties(images, measures)),
    )


def _find_suspects(images: AuditedImages) -> list[Suspect] | None:
    if images.labels is None or images.features is None:
        return None
    return find_label_errors(images.features, images.labels, images.is_train, images.groups)


def _find_far(images: AuditedImages) -> list[FarImage] | None:
    if images.labels is None or images.features is None:
        return None
    return find_far_images(images.features, images.labels)


def _find_shortcuts(images: AuditedImages, measures: Measures) -> Shortcuts | None:
    if images.labels is None:
        return None
    return find_shortcuts(measures, images.labels, images.class_names)


def _noise_properties(images: AuditedImages, measures: Measures) -> dict[str, NDArray[Any]]:
    properties: dict[str, NDArray[Any]] = {"split": images.splits, "folder": measures.source}
    return properties if images.labels is None else {"class": images.labels, **properties}
