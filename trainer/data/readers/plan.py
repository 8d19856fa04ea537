"""Classification of the folders of a source as classes, splits or neither.

`plan_folders` returns a `LayoutPlan`, or raises DataError if the folders are ambiguous. Splits are recognized
by their names together with their contents: `train` and `test` contain largely the same folders.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from trainer.data.labels import normalized
from trainer.data.readers.branches import Branch, agree, read_branch
from trainer.data.readers.named_images import labels_of_names
from trainer.data.readers.planned import (
    OUTSIDE_CLASSES,
    OUTSIDE_SPLITS,
    Ambiguous,
    Aside,
    ClassFolder,
    LabelledImage,
    LayoutPlan,
)
from trainer.data.readers.read_result import bare_name, is_picture, list_folder, split_named
from trainer.data.readers.split_names import require_no_mentions, splits_in_names, with_splits_of_pairs
from trainer.errors import DataError
from trainer.sanitize import printable

_RENAME = "name it train, validation or test to use it"
_NO_LABELS = "it has no class folders, so nothing says what is on them"


def plan_folders(base: Path, is_literal: bool) -> LayoutPlan:
    """Return how the folders in `base` are read.

    With `is_literal`, ambiguous folders are read as classes; otherwise they raise DataError.
    """
    try:
        return _plan(base)
    except Ambiguous as error:
        if is_literal:
            return _of_classes([read_branch(folder) for folder in list_folder(base)[0]], base)
        raise DataError(
            f"{error}, or set data.layout=folders to take each of these folders as a class.",
            received=f"{printable(error.names)} in {printable(str(base))}",
        ) from None


def _plan(base: Path) -> LayoutPlan:
    branches = [read_branch(folder) for folder in list_folder(base)[0]]
    return _first_plan(with_splits_of_pairs(branches), base)


def _first_plan(branches: Sequence[Branch], base: Path) -> LayoutPlan:
    found = (rule(branches, base) for rule in _RULES)
    return next(plan for plan in found if plan is not None)


def _of_classes(branches: Sequence[Branch], base: Path) -> LayoutPlan:
    """Read each folder as a class."""
    plan = LayoutPlan(listed=[base])
    plan.classes = [ClassFolder(branch.folder, branch.name, None) for branch in branches]
    plan.aside = [Aside(tuple(list_folder(base)[1]), OUTSIDE_CLASSES)]
    return plan


def _by_splits(branches: Sequence[Branch], base: Path) -> LayoutPlan | None:
    """Read folders with split names that contain class folders, or images named by class."""
    named = [branch for branch in branches if branch.split]
    if not named or not any(branch.folders or branch.has_own_pictures for branch in named):
        return None
    if any(branch.is_of_splits for branch in named):
        return None  # the splits are inside it, see `_below`
    others = [branch for branch in branches if not branch.split]
    strangers = [branch for branch in others if not branch.is_unlabelled and branch.has_pictures]
    if any(branch.folders for branch in named):
        plan = _with_folders(named, strangers)
    elif strangers:
        return _lone_class(named, branches, base)
    else:
        plan = _with_names(named)
    plan.listed.append(base)
    plan.aside += [
        Aside(branch.folder, OUTSIDE_SPLITS, _RENAME) for branch in others if not branch.is_unlabelled
    ]
    plan.aside += [
        Aside(branch.folder, OUTSIDE_SPLITS, _NO_LABELS) for branch in others if branch.is_unlabelled
    ]
    plan.aside.append(Aside(tuple(list_folder(base)[1]), OUTSIDE_CLASSES))
    return plan


def _with_folders(named: Sequence[Branch], strangers: Sequence[Branch]) -> LayoutPlan:
    holding = [branch for branch in named if branch.folders]
    if not agree(holding):
        raise Ambiguous(
            "Folders that are named like splits hold different folders, where each should hold those of the "
            "same classes: rename or move them",
            holding,
        )
    if strangers and (len(named) == 1 or "train" not in {branch.split for branch in holding}):
        raise Ambiguous(
            "Some folders are named like splits and hold folders, and others beside them hold images: name "
            "all splits train, validation or test, and move the other folders away",
            [*named, *strangers],
        )
    plan = LayoutPlan()
    for branch in holding:
        plan.listed.append(branch.inside)
        plan.classes += [ClassFolder(folder, folder.name, branch.split) for folder in branch.folders]
        plan.aside.append(Aside(branch.files, OUTSIDE_CLASSES))
    flat = [branch for branch in named if not branch.folders]
    plan.aside += [Aside(branch.folder, OUTSIDE_CLASSES, _NO_LABELS) for branch in flat]
    return plan


def _lone_class(named: Sequence[Branch], branches: Sequence[Branch], base: Path) -> LayoutPlan:
    """Read `train` as a class among vehicles, and `valid` as a class beside `invalid`."""
    names = {branch.name.lower() for branch in named}
    if names == {"train"}:
        plan = _without_unlabelled(branches, base)
        plan.warnings.append(
            "train/ is read as a class, as it holds images and other folders beside it do too"
        )
        return plan
    if names == {"valid"} and "invalid" in {branch.name.lower() for branch in branches}:
        return _without_unlabelled(branches, base)
    raise Ambiguous(
        "Some folders are named like splits but hold images and no class folders, beside folders that could "
        "be classes: move them away, or put their images into class folders of train/, validation/ or test/",
        named,
    )


def _with_names(named: Sequence[Branch]) -> LayoutPlan:
    pictures = {branch.name: tuple(filter(is_picture, branch.files)) for branch in named}
    trained = [branch for branch in named if branch.split == "train"] or list(named)
    sure = labels_of_names([path for branch in trained for path in pictures[branch.name]])
    if sure is None:
        raise Ambiguous(
            "The folders of the splits hold no class folders; put the images of each class into a folder "
            "that has its name",
            named,
        )
    plan = LayoutPlan()
    for branch in named:
        labels = labels_of_names(pictures[branch.name])
        if labels is None or not set(labels) <= set(sure):
            plan.aside.append(Aside(branch.folder, OUTSIDE_CLASSES, "their names don't say what is on them"))
            continue
        plan.images += [
            LabelledImage(path, label, branch.split)
            for path, label in zip(pictures[branch.name], labels, strict=True)
        ]
        plan.aside.append(Aside(tuple(set(branch.files) - set(pictures[branch.name])), OUTSIDE_CLASSES))
    return plan


def _splits_in_classes(branches: Sequence[Branch], base: Path) -> LayoutPlan | None:
    """Read `cats/train`, `cats/test`, `dogs/train`, `dogs/test`."""
    splits = {split_named(folder.name) for branch in branches for folder in branch.folders}
    if len(branches) < 2 or None in splits or "train" not in splits or len(splits) < 2:
        return None
    inner = {branch: [read_branch(folder) for folder in branch.folders] for branch in branches}
    if not all(inner[branch] and not branch.has_own_pictures for branch in branches):
        return None
    if any(each.folders for found in inner.values() for each in found):
        return None
    plan = LayoutPlan(listed=[base], aside=[Aside(tuple(list_folder(base)[1]), OUTSIDE_CLASSES)])
    plan.classes = [
        ClassFolder(each.folder, branch.name, each.split) for branch in branches for each in inner[branch]
    ]
    return plan


def _below(branches: Sequence[Branch], base: Path) -> LayoutPlan | None:
    """Read the only folder that is a complete dataset; set aside the others, such as docs or annotations."""
    sets = [branch for branch in branches if branch.is_of_splits and branch.has_pictures] or _only_images(
        branches
    )
    if len(sets) > 1:
        raise Ambiguous("There are several data sets, each with splits: give the folder of one of them", sets)
    if not sets:
        return None
    plan = _plan(sets[0].core)
    others = [branch for branch in branches if branch is not sets[0]]
    plan.aside += [Aside(branch.folder, OUTSIDE_SPLITS, f"{sets[0].name}/ is read") for branch in others]
    plan.aside.append(Aside(tuple(list_folder(base)[1]), OUTSIDE_CLASSES))
    return plan


def _only_images(branches: Sequence[Branch]) -> list[Branch]:
    """Return the folder called `images` if no folder beside it contains images."""
    general = [branch for branch in branches if branch.has_pictures and not bare_name(branch.name)]
    is_alone = len(general) == 1 < len(branches) and not any(map(str.isdigit, general[0].name))
    others = [branch for branch in branches if branch not in general]
    return general if is_alone and not any(branch.has_pictures for branch in others) else []


def _beside_copy(branches: Sequence[Branch], base: Path) -> LayoutPlan | None:
    """Set aside a folder among class folders that contains folders with the same names as its siblings."""
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
    advice = "it holds folders of the same names as those beside it"
    plan.aside += [Aside(branch.folder, OUTSIDE_CLASSES, advice) for branch in copies]
    return plan


def _parts(branches: Sequence[Branch], base: Path) -> LayoutPlan | None:
    """Read `part_1` and `part_2`, which contain the same class folders, as one; reject other such folders."""
    several = [branch for branch in branches if branch.folders and not branch.has_own_pictures]
    several = [branch for branch in several if branch.has_pictures] if len(several) > 1 else several
    if len(several) < 2 and not any(branch.is_part or branch.is_side for branch in branches):
        return None
    full = [branch for branch in branches if branch.has_pictures]
    if len(several) > 1 and 2 * len(several) > len(full) and agree(several, least=2):
        if len(several) == len(branches) and all(branch.is_part for branch in several):
            return _pooled(several, base)
        shared = ", ".join(sorted(several[0].labels & several[1].labels)[:3])
        raise Ambiguous(
            f"Several folders hold the same folders ({printable(shared)}), so these seem to be the classes: "
            "name the outer ones train, validation and test, or give one of them",
            several,
        )
    if len(full) > 1 and all(branch.is_part for branch in full):
        return _named_parts(full, base)
    if len(full) > 1 and all(branch.is_side for branch in full):
        raise Ambiguous(
            "The folders are named like parts of a set for segmentation or detection, not like classes: put "
            "the images of each class into a folder that has its name",
            full,
        )
    return None


def _pooled(branches: Sequence[Branch], base: Path) -> LayoutPlan:
    plan = LayoutPlan(listed=[base], aside=[Aside(tuple(list_folder(base)[1]), OUTSIDE_CLASSES)])
    for branch in branches:
        plan.listed.append(branch.inside)
        plan.classes += [ClassFolder(folder, folder.name, None) for folder in branch.folders]
    names = printable(", ".join(branch.name for branch in branches))
    plan.warnings.append(f"{names} hold the same class folders and are read as one")
    return plan


def _named_parts(branches: Sequence[Branch], base: Path) -> LayoutPlan:
    pictures = [path for branch in branches for path in branch.files if is_picture(path)]
    labels = labels_of_names(pictures)
    if labels is None:
        raise Ambiguous(
            "The folders are named like parts of one set, not like classes: put the images of each class "
            "into a folder that has its name, or add a table with the columns path and label",
            branches,
        )
    return LayoutPlan(images=[LabelledImage(*each, None) for each in zip(pictures, labels, strict=True)])


def _by_names(branches: Sequence[Branch], base: Path) -> LayoutPlan | None:
    """Read images named by class directly in `base`, or in its only folder."""
    if len(branches) > 1 or any(branch.folders for branch in branches):
        return None
    files = branches[0].files if branches else list_folder(base)[1]
    pictures = tuple(filter(is_picture, files))
    labels = labels_of_names(pictures)
    if labels is None:
        return None
    plan = LayoutPlan(images=[LabelledImage(*each, None) for each in zip(pictures, labels, strict=True)])
    rest = {*files, *list_folder(base)[1]} - set(pictures)
    plan.aside = [Aside(tuple(sorted(rest)), OUTSIDE_CLASSES)]
    return plan


def _without_unlabelled(branches: Sequence[Branch], base: Path) -> LayoutPlan:
    """Read each folder as a class, except those whose names denote unlabeled images."""
    labelled = [branch for branch in branches if not branch.is_unlabelled]
    plan = _of_classes(labelled if len(labelled) > 1 else branches, base)
    if len(labelled) > 1:
        rest = [branch for branch in branches if branch.is_unlabelled]
        plan.aside += [Aside(branch.folder, OUTSIDE_CLASSES, _NO_LABELS) for branch in rest]
    return plan


_RULES: tuple[Callable[[Sequence[Branch], Path], LayoutPlan | None], ...] = (
    _by_splits, _splits_in_classes, splits_in_names, _below, _beside_copy, _parts, _by_names,
    require_no_mentions, _without_unlabelled,
)  # fmt: skip
