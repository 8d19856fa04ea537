"""Splits from names of tables, of their folders or of the images' folders, instead of a table column."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from trainer.data.readers.lookup import Lookup
from trainer.data.readers.read_result import ReadResult, split_among_words, split_named
from trainer.data.readers.tables import Table
from trainer.sanitize import printable


def without_strangers(tables: list[Table], found: ReadResult) -> list[Table]:
    """Drop a table without a split beside `train.csv` and `test.csv`; warnings are added to `found`."""
    splits = splits_of(tables)
    kept = [table for table in tables if not splits or not table.header or table.path in splits]
    names = printable(", ".join(table.path.name for table in kept))
    found.warnings += [
        f"{printable(table.path.name)} is not used: it is of no split, as {names} are"
        for table in tables
        if table not in kept
    ]
    return kept


def splits_of(tables: Sequence[Table]) -> dict[Path, str]:
    """Return the split of each table with named columns, by path.

    The split is that of the table's folder, or, if no folder has one, that of its file name if these differ.
    """
    folders = {table.path: split_named(table.path.parent.name) for table in tables if table.header}
    names = {table.path: split_among_words(table.path.stem) for table in tables if table.header}
    found = folders if any(folders.values()) else names if len(set(names.values()) - {None}) > 1 else {}
    return {path: split for path, split in found.items() if split}


def with_splits_of_folders(found: ReadResult, tables: Sequence[Table], lookup: Lookup) -> ReadResult:
    """Set splits from the images' folders if no table defines a split and every image has a split folder.

    Applies only if all tables have named columns and the folders name more than one split.
    """
    splits = [lookup.split_of(item.path) for item in found.items]
    is_free = all(table.header for table in tables) and not any(item.split for item in found.items)
    if is_free and None not in splits and len(set(splits)) > 1:
        found.items = [replace(item, split=split) for item, split in zip(found.items, splits, strict=True)]
    return found
