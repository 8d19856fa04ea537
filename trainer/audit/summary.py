"""Results of an audit as lines of text, as JSON and as a table of suspects."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

from trainer.audit.audit import Audit
from trainer.audit.label_errors import Suspect
from trainer.data.near_duplicates import DuplicateGroup
from trainer.sanitize import printable, spreadsheet_cell

_MOST_SUSPECTS = 200
_LEVEL = 0.01


class Finding(NamedTuple):
    """One line of the summary."""

    name: str
    value: str
    detail: str


def summarize_audit(audit: Audit) -> list[Finding]:
    """Return one finding for each check, also if nothing was found."""
    return [
        _label_errors(audit),
        _duplicates(audit),
        *_sequences(audit),
        _shortcut(audit),
        _odd(audit),
        *_far(audit),
        _noise(audit),
    ]


def _label_errors(audit: Audit) -> Finding:
    if audit.suspects is None:
        reason = (
            "needs pretrained weights"
            if audit.images.features is None
            else "too few images or classes, or hours of work"
        )
        return Finding(
            "label errors", "not checked", "several labels" if audit.images.labels is None else reason
        )
    probable = audit.probable_errors
    others = len(audit.suspects) - len(probable)
    examples = [describe_suspect(audit, suspect) for suspect in probable[:1]]
    return Finding(
        "label errors", _count(len(probable), "suspect"), "; ".join([*examples, f"{others} less certain"])
    )


def describe_suspect(audit: Audit, suspect: Suspect) -> str:
    """Return a phrase such as `cats/1.jpg looks like dogs (0.97)`."""
    name = printable(audit.images.items[suspect.row].name)
    label = printable(audit.images.class_names[suspect.suggested])
    return f"{name} looks like {label} ({suspect.suggested_probability:.2f})"


def _duplicates(audit: Audit) -> Finding:
    groups, leaks, contradictions = audit.duplicates, audit.leaks, audit.contradictions
    parts = [describe_group(audit, group) for group in (leaks or contradictions or groups)[:1]]
    parts += [f"{len(leaks)} in several splits"] if leaks else []
    parts += [f"{len(contradictions)} with several labels"] if contradictions else []
    return Finding("near-duplicates", _count(len(groups), "group"), "; ".join(parts))


def describe_group(audit: Audit, group: DuplicateGroup) -> str:
    """Return a phrase such as `cats/1.jpg = cats/2.jpg (mirrored)`."""
    names = [printable(audit.images.items[row].name) for row in group.rows[:2]]
    more = f" and {len(group.rows) - 2} more" if len(group.rows) > 2 else ""
    return f"{' = '.join(names)}{more} ({group.how})"


def _sequences(audit: Audit) -> list[Finding]:
    sequences = audit.sequences
    if sequences is None:
        return []
    across = f"{sequences.across} in several splits; " if sequences.across else ""
    detail = f"{across}keep them together with data.group=name:REGEX"
    return [Finding("sequences", _count(len(sequences.rows), "sequence"), detail)]


def _shortcut(audit: Audit) -> Finding:
    shortcuts = audit.shortcuts
    if shortcuts is None:
        return Finding("shortcut", "not checked", "too few images or classes")
    claimed = shortcuts.claimed
    best = claimed[0] if claimed else shortcuts.technical
    detail = f"{best.name} alone: accuracy {best.accuracy:.2f} (guessing {shortcuts.chance:.2f})"
    return Finding("shortcut", best.name if claimed else "none found", detail)


def _odd(audit: Audit) -> Finding:
    odd = audit.odd
    kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(image.kind for image in odd).most_common())
    example = f"; {printable(audit.images.items[odd[0].row].name)}: {odd[0].sentence}" if odd else ""
    return Finding("odd images", _count(len({image.row for image in odd}), "image"), f"{kinds}{example}")


def _far(audit: Audit) -> list[Finding]:
    if audit.far is None:
        return []
    examples = ", ".join(printable(audit.images.items[image.row].name) for image in audit.far[:2])
    return [Finding("outliers", _count(len(audit.far), "image"), examples)]


def _noise(audit: Audit) -> Finding:
    texts = audit.noise.texts
    related = [
        f"depends on {association.name} (p < {max(association.p_value, 0.001):.3f})"
        for association in audit.associations
        if association.p_value < _LEVEL
    ]
    counts = Counter(audit.noise.groups.tolist())
    sizes = " and ".join(f"{counts[number]:,}" for number in range(len(texts)))
    detail = "; ".join([f"{sizes} images", *related]) if len(texts) > 1 else "all images have similar noise"
    return Finding("noise groups", str(len(texts)), detail)


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}" if count else "none"


def audit_json(audit: Audit) -> dict[str, Any]:
    """Return the findings as plain values; images are named, not numbered."""
    names = [item.name for item in audit.images.items]
    shortcuts = audit.shortcuts
    return {
        "images": len(names),
        "class_names": list(audit.images.class_names),
        "findings": [finding._asdict() for finding in summarize_audit(audit)],
        "label_errors": None if audit.suspects is None else [*_suspect_rows(audit, audit.suspects)],
        "near_duplicates": [_group_json(group, names) for group in audit.duplicates],
        "sequences": None if audit.sequences is None else {
            "count": len(audit.sequences.rows), "in_several_splits": audit.sequences.across,
        },
        "odd_images": [
            {"path": names[image.row], "kind": image.kind, "text": image.sentence} for image in audit.odd
        ],
        "outliers": None if audit.far is None else [
            {"path": names[image.row], "distance": image.distance} for image in audit.far
        ],
        "shortcuts": None if shortcuts is None else {
            "chance": shortcuts.chance,
            "technical": shortcuts.technical.accuracy,
            "content": shortcuts.content.accuracy,
            "found": [{"name": field.name, "accuracy": field.accuracy} for field in shortcuts.claimed],
        },
        "noise_groups": [
            {"text": text, "images": int((audit.noise.groups == number).sum())}
            for number, text in enumerate(audit.noise.texts)
        ],
    }  # fmt: skip


def _group_json(group: DuplicateGroup, names: list[str]) -> dict[str, Any]:
    return {"paths": [names[row] for row in group.rows], "difference": group.how}


def _suspect_rows(audit: Audit, suspects: Iterable[Suspect]) -> Iterable[dict[str, Any]]:
    images = audit.images
    for suspect in list(suspects)[:_MOST_SUSPECTS]:
        label = -1 if images.labels is None else int(images.labels[suspect.row])
        yield {
            "path": images.items[suspect.row].name,
            "split": str(images.splits[suspect.row]),
            "label": images.class_names[label],
            "new_label": images.class_names[suspect.suggested],
            "label_probability": round(suspect.label_probability, 4),
            "new_label_probability": round(suspect.suggested_probability, 4),
            "is_probable": suspect.is_probable,
        }


def suspects_csv(audit: Audit) -> str:
    """Return suspects.csv: the probable label errors, the table that data.exclude and data.relabel read.

    Columns: path, split, label, new_label, label_probability, new_label_probability.
    """
    text = io.StringIO(newline="")
    columns = ["path", "split", "label", "new_label", "label_probability", "new_label_probability"]
    writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    writer.writerow(columns)
    for row in _suspect_rows(audit, audit.probable_errors):
        cells = [row[column] for column in columns]
        writer.writerow([_cell(cell) if isinstance(cell, str) else cell for cell in cells])
    return text.getvalue()


def _cell(text: str) -> str:
    return spreadsheet_cell(text.encode("utf-8", "backslashreplace").decode("utf-8"))
