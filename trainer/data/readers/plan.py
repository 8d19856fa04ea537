"""Classification of the folders of a source as classes, splits or neither.

`plan_folders` returns a `LayoutPlan`, which `folders` executes, or raises DataError if the folders are
ambiguous. Splits are recognized by their names together with their contents: `train` and `test` contain
largely the same folders.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from trainer.data.items import normalized
from trainer.data.readers.named_images import labels_of_names
from trainer.data.readers.read_result import (
    bare_name,
    is_picture,
    list_files,
    list_folder,
    split_among_words,
    split_and_label,
    split_named,
    wrapped_folders,
)
from trainer.errors import DataError
from trainer.sanitize import printable

_MAX_NESTED = 4
_UNLABELLED = frozenset(
    {"pred", "predict", "prediction", "predictions", "unlabeled", "unlabelled", "submission"}
)
_PARTS = frozenset({"part", "parts", "fold", "batch", "chunk", "shard", "subset", "split", "archive", ""})
_SIDES = frozenset(
    {"mask", "masks", "annotation", "annotations", "label", "labels", "segmentation", "segmentations"}
    | {"groundtruth", "gt", "depth", "edges", "bboxes", "thumbnails", ""}
)


@dataclass(frozen=True)
class Branch:
    """One top-level folder."""

    folder: Path
    split: str | None
    inside: Path
    """The folder itself, or the nested folder that contains its data."""
    folders: tuple[Path, ...]
    """Folders directly in `inside`."""
    files: tuple[Path, ...]
    """Files directly in `inside`."""

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.folder.name

    @cached_property
    def labels(self) -> frozenset[str]:
        """Class labels that its folders would have, in NFC."""
        return frozenset(normalized(folder.name) for folder in self.folders)

    @cached_property
    def has_own_pictures(self) -> bool:
        """Whether `inside` directly contains an image."""
        return any(map(is_picture, self.files))

    @cached_property
    def has_pictures(self) -> bool:
        """Whether the folder contains an image at any depth."""
        return self.has_own_pictures or any(map(is_picture, list_files(self.folder)))

    @property
    def core(self) -> Path:
        """`inside`, or the innermost of its wrapper folders if it contains a single folder."""
        return wrapped_folders(self.inside)[-1] if len(self.folders) == 1 else self.inside

    @cached_property
    def is_of_splits(self) -> bool:
        """Whether the folder is a complete dataset: its folders are splits that contain folders."""
        if not self.folders:
            return False
        named = [folder for folder in list_folder(self.core)[0] if split_named(folder.name)]
        splits = {split_named(folder.name) for folder in named if list_folder(_inside(folder))[0]}
        return "train" in splits or len(splits) > 1

    @property
    def is_flat(self) -> bool:
        """Whether the folder contains images and no folders."""
        return not self.folders and self.has_own_pictures

    @property
    def is_unlabelled(self) -> bool:
        """Whether the name denotes unlabeled images, such as `predict`."""
        return bare_name(self.name) in _UNLABELLED

    @property
    def is_part(self) -> bool:
        """Whether the name denotes a numbered part: `images_part_1`, `fold0`."""
        name = self.name
        return any(map(str.isdigit, name)) and any(map(str.isalpha, name)) and _last_word(name) in _PARTS

    @property
    def is_side(self) -> bool:
        """Whether the name denotes one side of a paired dataset: images, masks."""
        return bare_name(self.name) in _SIDES and not any(map(str.isdigit, self.name))


def read_branch(folder: Path) -> Branch:
    """Return the branch of `folder`. Raises DataError if the folder cannot be read."""
    inside = _inside(folder)
    folders, files = list_folder(inside)
    return Branch(folder, split_named(folder.name), inside, tuple(folders), tuple(files))


def have_same_folders(branches: Sequence[Branch], least: int = 1) -> bool:
    """Return whether at least half of each branch's folder names occur in the largest branch.

    Each branch must share at least `least` names with it.
    """
    largest = max((branch.labels for branch in branches), key=len)
    shared = [(len(branch.labels & largest), len(branch.labels)) for branch in branches]
    return all(common >= least and 2 * common >= count for common, count in shared)


def _inside(folder: Path) -> Path:
    split = split_named(folder.name)
    for _ in range(_MAX_NESTED):
        folders, files = list_folder(folder)
        if len(folders) != 1 or any(map(is_picture, files)):
            break
        name = folders[0].name
        is_same = split_named(name) == split if split else name.lower() == folder.name.lower()
        if not is_same and bare_name(name):
            break
        folder = folders[0]
    return folder


def _last_word(name: str) -> str:
    """Return the last word of `name` that is not filler, or "" if there is none, as in `images_1`."""
    words = map(bare_name, re.split(r"[\W_]+", name))
    return next((word for word in reversed(list(words)) if word), "")


_RENAME = "rename it to train, validation or test to use it"
_NO_LABELS = "it has no class folders, so its images have no labels"

_OUTSIDE_CLASSES = "outside the class folders"
_OUTSIDE_SPLITS = "outside the folders of the splits"


class ClassFolder(NamedTuple):
    """A folder whose images have one label."""

    folder: Path
    label: str
    split: str | None


class LabelledImage(NamedTuple):
    """An image whose file name contains its label."""

    path: Path
    label: str
    split: str | None


class Exclusion(NamedTuple):
    """A folder, or files, whose images are left out."""

    source: Path | tuple[Path, ...]
    reason: str
    advice: str = ""


@dataclass
class LayoutPlan:
    """How the folders of a source are read."""

    classes: list[ClassFolder] = field(default_factory=list)
    images: list[LabelledImage] = field(default_factory=list)
    exclusions: list[Exclusion] = field(default_factory=list)
    listed: list[Path] = field(default_factory=list)
    """Folders that contain the classes or splits."""
    warnings: list[str] = field(default_factory=list)


class _AmbiguousError(Exception):
    """Ambiguous folder structure: the problem, the remedy without a full stop, and the folders."""

    def __init__(self, problem: str, remedy: str, branches: Sequence[Branch]) -> None:
        super().__init__(problem)
        self.problem, self.remedy = problem, remedy
        self.names = ", ".join(branch.name for branch in branches)


def plan_folders(base: Path, is_literal: bool) -> LayoutPlan:
    """Return how the folders in `base` are read.

    With `is_literal`, ambiguous folders are read as classes; otherwise they raise DataError.
    """
    try:
        return _plan(base)
    except _AmbiguousError as error:
        if is_literal:
            return _plan_classes([read_branch(folder) for folder in list_folder(base)[0]], base)
        raise DataError(
            error.problem,
            f"{error.remedy}, or set data.layout=folders to use each of these folders as a class.",
            received=f"{printable(error.names)} in {printable(str(base))}",
        ) from None


def _plan(base: Path) -> LayoutPlan:
    branches = [read_branch(folder) for folder in list_folder(base)[0]]
    return _first_plan(_set_splits_of_pairs(branches), base)


def _first_plan(branches: Sequence[Branch], base: Path) -> LayoutPlan:
    plans = (rule(branches, base) for rule in _RULES)
    return next(plan for plan in plans if plan is not None)


def _plan_classes(branches: Sequence[Branch], base: Path) -> LayoutPlan:
    """Read each folder as a class."""
    plan = LayoutPlan(listed=[base])
    plan.classes = [ClassFolder(branch.folder, branch.name, None) for branch in branches]
    plan.exclusions = [Exclusion(tuple(list_folder(base)[1]), _OUTSIDE_CLASSES)]
    return plan


def _plan_splits(branches: Sequence[Branch], base: Path) -> LayoutPlan | None:
    """Read folders with split names that contain class folders, or images named by class."""
    named = [branch for branch in branches if branch.split]
    if not named or not any(branch.folders or branch.has_own_pictures for branch in named):
        return None
    if any(branch.is_of_splits for branch in named):
        return None  # the splits are inside it, see `_plan_subfolder`
    others = [branch for branch in branches if not branch.split]
    other_images = [branch for branch in others if not branch.is_unlabelled and branch.has_pictures]
    if any(branch.folders for branch in named):
        plan = _plan_split_folders(named, other_images)
    elif other_images:
        return _plan_split_named_class(named, branches, base)
    else:
        plan = _plan_split_image_names(named)
    plan.listed.append(base)
    plan.exclusions += [
        Exclusion(branch.folder, _OUTSIDE_SPLITS, _RENAME) for branch in others if not branch.is_unlabelled
    ]
    plan.exclusions += [
        Exclusion(branch.folder, _OUTSIDE_SPLITS, _NO_LABELS) for branch in others if branch.is_unlabelled
    ]
    plan.exclusions.append(Exclusion(tuple(list_folder(base)[1]), _OUTSIDE_CLASSES))
    return plan


def _plan_split_folders(named: Sequence[Branch], other_images: Sequence[Branch]) -> LayoutPlan:
    with_folders = [branch for branch in named if branch.folders]
    if not have_same_folders(with_folders):
        raise _AmbiguousError(
            "Folders with names of splits contain different class folders.",
            "Each split needs the same class folders: rename or move the others",
            with_folders,
        )
    if other_images and (len(named) == 1 or "train" not in {branch.split for branch in with_folders}):
        raise _AmbiguousError(
            "Some folders have names of splits and contain folders, and others beside them contain images.",
            "Name all splits train, validation or test, and move the other folders out of the source",
            [*named, *other_images],
        )
    plan = LayoutPlan()
    for branch in with_folders:
        plan.listed.append(branch.inside)
        plan.classes += [ClassFolder(folder, folder.name, branch.split) for folder in branch.folders]
        plan.exclusions.append(Exclusion(branch.files, _OUTSIDE_CLASSES))
    flat = [branch for branch in named if not branch.folders]
    plan.exclusions += [Exclusion(branch.folder, _OUTSIDE_CLASSES, _NO_LABELS) for branch in flat]
    return plan


def _plan_split_named_class(named: Sequence[Branch], branches: Sequence[Branch], base: Path) -> LayoutPlan:
    """Read `train` as a class among vehicles, and `valid` as a class beside `invalid`."""
    names = {branch.name.lower() for branch in named}
    if names == {"train"}:
        plan = _plan_labelled(branches, base)
        plan.warnings.append(
            "train/ is used as a class, because it contains images like the other folders beside it"
        )
        return plan
    if names == {"valid"} and "invalid" in {branch.name.lower() for branch in branches}:
        return _plan_labelled(branches, base)
    raise _AmbiguousError(
        "Folders with names of splits contain images, not class folders, and other folders could be classes.",
        "Move them out of the source, or put their images into class folders in train/, validation/ or test/",
        named,
    )


def _plan_split_image_names(named: Sequence[Branch]) -> LayoutPlan:
    pictures = {branch.name: tuple(filter(is_picture, branch.files)) for branch in named}
    trained = [branch for branch in named if branch.split == "train"] or list(named)
    train_labels = labels_of_names([path for branch in trained for path in pictures[branch.name]])
    if train_labels is None:
        raise _AmbiguousError(
            "The folders of the splits contain no class folders.",
            "Put the images of each class into a folder with its name",
            named,
        )
    plan = LayoutPlan()
    for branch in named:
        labels = labels_of_names(pictures[branch.name])
        if labels is None or not set(labels) <= set(train_labels):
            advice = "the names of its images contain no known labels"
            plan.exclusions.append(Exclusion(branch.folder, _OUTSIDE_CLASSES, advice))
            continue
        plan.images += [
            LabelledImage(path, label, branch.split)
            for path, label in zip(pictures[branch.name], labels, strict=True)
        ]
        plan.exclusions.append(
            Exclusion(tuple(set(branch.files) - set(pictures[branch.name])), _OUTSIDE_CLASSES)
        )
    return plan


def _plan_splits_in_classes(branches: Sequence[Branch], base: Path) -> LayoutPlan | None:
    """Read `cats/train`, `cats/test`, `dogs/train`, `dogs/test`."""
    splits = {split_named(folder.name) for branch in branches for folder in branch.folders}
    if len(branches) < 2 or None in splits or "train" not in splits or len(splits) < 2:
        return None
    inner = {branch: [read_branch(folder) for folder in branch.folders] for branch in branches}
    if not all(inner[branch] and not branch.has_own_pictures for branch in branches):
        return None
    if any(split.folders for splits_of_class in inner.values() for split in splits_of_class):
        return None
    plan = LayoutPlan(listed=[base], exclusions=[Exclusion(tuple(list_folder(base)[1]), _OUTSIDE_CLASSES)])
    plan.classes = [
        ClassFolder(split.folder, branch.name, split.split) for branch in branches for split in inner[branch]
    ]
    return plan


def _plan_subfolder(branches: Sequence[Branch], base: Path) -> LayoutPlan | None:
    """Read the only folder that is a complete dataset; exclude the others, such as annotations."""
    sets = [
        branch for branch in branches if branch.is_of_splits and branch.has_pictures
    ] or _find_image_folder(branches)
    if len(sets) > 1:
        raise _AmbiguousError(
            "The source contains several data sets with splits.",
            "Set data.source to one of their folders",
            sets,
        )
    if not sets:
        return None
    plan = _plan(sets[0].core)
    others = [branch for branch in branches if branch is not sets[0]]
    plan.exclusions += [
        Exclusion(branch.folder, _OUTSIDE_SPLITS, f"only {sets[0].name}/ is used") for branch in others
    ]
    plan.exclusions.append(Exclusion(tuple(list_folder(base)[1]), _OUTSIDE_CLASSES))
    return plan


def _find_image_folder(branches: Sequence[Branch]) -> list[Branch]:
    """Return the folder called `images` if no folder beside it contains images."""
    general = [branch for branch in branches if branch.has_pictures and not bare_name(branch.name)]
    is_alone = len(general) == 1 < len(branches) and not any(map(str.isdigit, general[0].name))
    others = [branch for branch in branches if branch not in general]
    return general if is_alone and not any(branch.has_pictures for branch in others) else []


def _plan_without_copies(branches: Sequence[Branch], base: Path) -> LayoutPlan | None:
    """Exclude a folder among class folders that contains folders with the same names as its siblings."""
    names = {normalized(branch.name) for branch in branches}
    copies = [
        branch
        for branch in branches
        if len(branch.labels & names) > 1 and 2 * len(branch.labels & names) >= len(branch.labels)
    ]
    rest = [branch for branch in branches if branch not in copies]
    if not copies or len(rest) < 2:
        return None
    plan = _first_plan(rest, base)
    advice = "it contains folders with the same names as the folders beside it"
    plan.exclusions += [Exclusion(branch.folder, _OUTSIDE_CLASSES, advice) for branch in copies]
    return plan


def _plan_parts(branches: Sequence[Branch], base: Path) -> LayoutPlan | None:
    """Read `part_1` and `part_2`, which contain the same class folders, as one; reject other such folders."""
    several = [branch for branch in branches if branch.folders and not branch.has_own_pictures]
    several = [branch for branch in several if branch.has_pictures] if len(several) > 1 else several
    if len(several) < 2 and not any(branch.is_part or branch.is_side for branch in branches):
        return None
    full = [branch for branch in branches if branch.has_pictures]
    if len(several) > 1 and 2 * len(several) > len(full) and have_same_folders(several, least=2):
        if len(several) == len(branches) and all(branch.is_part for branch in several):
            return _combine_parts(several, base)
        shared = ", ".join(sorted(several[0].labels & several[1].labels)[:3])
        raise _AmbiguousError(
            f"Several folders contain the same folders ({printable(shared)}), which seem to be the classes.",
            "Rename the outer folders to train, validation and test, set data.source to one of them",
            several,
        )
    if len(full) > 1 and all(branch.is_part for branch in full):
        return _plan_named_parts(full, base)
    if len(full) > 1 and all(branch.is_side for branch in full):
        raise _AmbiguousError(
            "The folder names are those of a segmentation or detection dataset, not of classes.",
            "Put the images of each class into a folder with its name",
            full,
        )
    return None


def _combine_parts(branches: Sequence[Branch], base: Path) -> LayoutPlan:
    plan = LayoutPlan(listed=[base], exclusions=[Exclusion(tuple(list_folder(base)[1]), _OUTSIDE_CLASSES)])
    for branch in branches:
        plan.listed.append(branch.inside)
        plan.classes += [ClassFolder(folder, folder.name, None) for folder in branch.folders]
    names = printable(", ".join(branch.name for branch in branches))
    plan.warnings.append(f"{names} contain the same class folders and are combined")
    return plan


def _plan_named_parts(branches: Sequence[Branch], base: Path) -> LayoutPlan:
    pictures = [path for branch in branches for path in branch.files if is_picture(path)]
    labels = labels_of_names(pictures)
    if labels is None:
        raise _AmbiguousError(
            "The folder names are those of parts of one dataset, not of classes.",
            "Put the images of each class into a folder with its name, add a table with the columns path and "
            "label",
            branches,
        )
    return LayoutPlan(images=[LabelledImage(*pair, None) for pair in zip(pictures, labels, strict=True)])


def _plan_image_names(branches: Sequence[Branch], base: Path) -> LayoutPlan | None:
    """Read images named by class directly in `base`, or in its only folder."""
    if len(branches) > 1 or any(branch.folders for branch in branches):
        return None
    files = branches[0].files if branches else list_folder(base)[1]
    pictures = tuple(filter(is_picture, files))
    labels = labels_of_names(pictures)
    if labels is None:
        return None
    plan = LayoutPlan(images=[LabelledImage(*pair, None) for pair in zip(pictures, labels, strict=True)])
    rest = {*files, *list_folder(base)[1]} - set(pictures)
    plan.exclusions = [Exclusion(tuple(sorted(rest)), _OUTSIDE_CLASSES)]
    return plan


def _plan_labelled(branches: Sequence[Branch], base: Path) -> LayoutPlan:
    """Read each folder as a class, except those whose names denote unlabeled images."""
    labelled = [branch for branch in branches if not branch.is_unlabelled]
    plan = _plan_classes(labelled if len(labelled) > 1 else branches, base)
    if len(labelled) > 1:
        rest = [branch for branch in branches if branch.is_unlabelled]
        plan.exclusions += [Exclusion(branch.folder, _OUTSIDE_CLASSES, _NO_LABELS) for branch in rest]
    return plan


def _set_splits_of_pairs(branches: Sequence[Branch]) -> list[Branch]:
    """Return `branches`, with splits for those that differ only in a split word: `my_train`, `my_test`."""
    splits: defaultdict[str, dict[str, Branch]] = defaultdict(dict)
    for branch in branches:
        if branch.split is None and (part := split_and_label(branch.name)):
            splits[part[1].lower()][part[0]] = branch
    pairs = [branch_by_split for branch_by_split in splits.values() if len(branch_by_split) > 1]
    # With several pairs each pair is a class, see `_plan_splits_in_names`.
    new = {branch.folder: split for split, branch in pairs[0].items()} if len(pairs) == 1 else {}
    return [replace(branch, split=new.get(branch.folder, branch.split)) for branch in branches]


def _plan_splits_in_names(branches: Sequence[Branch], base: Path) -> LayoutPlan | None:
    """Read `train_cats`, `train_dogs`, `test_cats` and `test_dogs`."""
    parts = [split_and_label(branch.name) for branch in branches if not branch.folders]
    pairs = {part for part in parts if part is not None}
    splits, labels = {split for split, _ in pairs}, {label for _, label in pairs}
    if "train" not in splits or len(splits) < 2 or len(labels) < 2 or len(pairs) != len(branches):
        return None
    if pairs != {(split, label) for split in splits for label in labels}:
        return None
    plan = LayoutPlan(listed=[base], exclusions=[Exclusion(tuple(list_folder(base)[1]), _OUTSIDE_CLASSES)])
    plan.classes = [
        ClassFolder(branch.folder, label, split)
        for branch, part in zip(branches, parts, strict=True)
        if part is not None
        for split, label in [part]
    ]
    return plan


def _require_no_mentions(branches: Sequence[Branch], base: Path) -> LayoutPlan | None:
    """Return None. Raises _AmbiguousError if at least half of the folders with images mention splits."""
    mentions = {branch: split_among_words(branch.name) for branch in branches if branch.has_pictures}
    mentioning = [branch for branch, split in mentions.items() if split]
    # Many classes may include a train station and a test tube.
    if len(set(mentions.values()) - {None}) > 1 and 2 * len(mentioning) >= len(mentions):
        raise _AmbiguousError(
            "The names of several folders contain names of splits.",
            "If they are splits, name them train, validation and test, with the same class folders in each",
            mentioning,
        )
    return None


_RULES: tuple[Callable[[Sequence[Branch], Path], LayoutPlan | None], ...] = (
    _plan_splits, _plan_splits_in_classes, _plan_splits_in_names, _plan_subfolder, _plan_without_copies,
    _plan_parts, _plan_image_names, _require_no_mentions, _plan_labelled,
)  # fmt: skip
