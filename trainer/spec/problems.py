"""Validation errors of a spec, with the key, the received value and the most similar existing key."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from trainer.errors import UsageError
from trainer.sanitize import shown_address
from trainer.spec.checked import SettingError
from trainer.spec.schema import ModelSpec, RunSpec
from trainer.spec.text import shown_repr

_SHOWN_PROBLEMS = 5
_MANY_CHOICES = 9
_PATTERNS = {
    "data.checksum": "md5: and 32 hex digits, or sha256: and 64",
    "run_name": "1 to 128 letters, digits, '.', '_' and '-', the first one a letter or digit",
}
_SIMILAR, _SIMILAR_ELSEWHERE = 0.7, 0.8
"""Minimum similarity (difflib ratio) of a suggested name, within the same section and outside it."""
FAMILIES = tuple(spec.model_fields["family"].default for spec in get_args(get_args(ModelSpec)[0]))
"""Names of the network families, which are the union branches of `model` in pydantic's error locations."""


@dataclass(frozen=True)
class _Problem:
    """One problem of a spec, with the fields of a UsageError."""

    problem: str
    remedy: str = ""
    received: object = None
    expected: str = ""
    """Valid values as a noun phrase; empty unless the value of an existing setting is invalid."""

    def as_error(self) -> UsageError:
        """Return the problem as an exception."""
        return UsageError(self.problem, self.remedy, self.received)


def known_keys() -> list[str]:
    """Return every dotted key of a `RunSpec`, including those of all model families."""
    return _keys(RunSpec, "")


def require_known_key(key: str, *values: Any) -> None:
    """Raise UsageError, with the most similar key, if no spec has the dotted `key`.

    `values` is the value that was set, if any.
    """
    # Class names are arbitrary, so any key below class_weights is valid.
    if key not in known_keys() and not key.startswith("train.class_weights."):
        raise _unknown(key, values[0] if values else key).as_error()


def invalid_spec(error: ValidationError) -> UsageError:
    """Return the error for the problems that pydantic found: one line per problem, at most the first five."""
    # Each branch of a union reports an error: the deepest one is the most specific; errors of one key are
    # merged.
    by_key: dict[str, _Problem] = {}
    for details in error.errors(include_url=False):
        key, problem = _dotted(details["loc"]), _describe(details)
        by_key[key] = _merge_branches(key, by_key[key], problem) if key in by_key else problem
    problems = [
        problem for key, problem in by_key.items() if not any(other.startswith(f"{key}.") for other in by_key)
    ]
    if len(problems) == 1:
        return problems[0].as_error()
    lines = [str(problem.as_error()) for problem in problems[:_SHOWN_PROBLEMS]]
    more = len(problems) - len(lines)
    return UsageError("\n".join([*lines, f"... and {more} more"] if more else lines))


def is_section(key: str) -> bool:
    """Return whether the top-level `key` is a section with settings of its own."""
    return any(other.startswith(f"{key}.") for other in known_keys())


def _keys(model: type[BaseModel], prefix: str) -> list[str]:
    keys: list[str] = []
    for name, field in model.model_fields.items():
        keys.append(prefix + name)
        for inner in nested_specs(field.annotation):
            keys += _keys(inner, f"{prefix}{name}.")
    return list(dict.fromkeys(keys))


def nested_specs(annotation: Any) -> list[type[BaseModel]]:
    """Return the spec classes in the annotation of a field."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in nested_specs(part)]


def _merge_branches(key: str, one: _Problem, other: _Problem) -> _Problem:
    """Merge the problems of two branches of a union into one that lists the valid values of both."""
    if not (one.expected and other.expected):
        return other
    return _invalid_value(key, f"{one.expected} or {other.expected}", one.received)


def _invalid_value(key: str, expected: str, received: object, remedy: str = "") -> _Problem:
    return _Problem(f"{key} must be {expected}.", remedy, received, expected)


def _describe(details: Any) -> _Problem:
    key, value, kind = shown_address(_dotted(details["loc"])), details["input"], details["type"]
    last = str(details["loc"][-1] if details["loc"] else "")
    if value is None and ":" in last:
        pair = shown_address(last.replace(":", ": ", 1))
        return _Problem(
            "YAML requires a space after a colon.", f"Write {{{pair}}}.", f"{{{pair.replace(': ', ':', 1)}}}"
        )
    if kind == "extra_forbidden" and "." in last:
        outer, _, inner = last.partition(".")
        remedy = f"Write two lines, `{outer}:` and below it, indented, `{inner}: ...`."
        return _Problem(f"A key of a YAML file cannot contain a dot, as {key} does.", remedy, _brief(value))
    if kind == "extra_forbidden":
        return _unknown(key, value)
    if kind in ("model_type", "model_attributes_type"):
        problem = f"{key} is a section with settings, not a setting."
        return _Problem(problem, f"Set one of its settings, such as {_first_inside(key)}.", _brief(value))
    cause = details.get("ctx", {}).get("error")
    if isinstance(cause, SettingError):
        return _Problem(cause.problem, cause.remedy, cause.received)
    return _describe_value(key, value, details)


def _describe_value(key: str, value: Any, details: Any) -> _Problem:
    """Return the problem of an invalid value of an existing setting."""
    kind, message = details["type"], str(details["msg"]).removeprefix("Value error, ")
    if kind == "union_tag_invalid":
        tags = details["ctx"]
        return _invalid_value(f"{key}.family", f"one of {tags['expected_tags']}", _brief(tags["tag"]))
    if kind == "string_pattern_mismatch":
        return _invalid_value(key, _PATTERNS.get(key, "in another form"), _brief(value))
    expected = message.removeprefix("Input should be ")
    if expected == message:
        return _Problem(f"{key}: {message[0].lower()}{message[1:]}.", "", _brief(value))
    remedy = ""
    if kind == "literal_error" and isinstance(value, str):
        remedy = _hint_of_choice(expected, value)
    return _invalid_value(key, expected, _brief(value), remedy)


def _hint_of_choice(expected: str, received: str) -> str:
    """Suggest the nearest of many choices; empty if there are only a few or none is similar."""
    choices = re.findall(r"'([^']*)'", expected)
    nearest = difflib.get_close_matches(received, choices, n=1) if len(choices) >= _MANY_CHOICES else []
    return f"Did you mean {nearest[0]}?" if nearest else ""


def _dotted(location: tuple[Any, ...]) -> str:
    """Return pydantic's location as a key of the spec, without the names of union branches."""
    known, key = set(known_keys()), ""
    for part in location:
        longer = f"{key}.{part}" if key else str(part)
        if longer in known or not _is_branch(key, part):
            key = longer
    return key


def _is_branch(key: str, part: Any) -> bool:
    if key == "model":
        return part in FAMILIES
    return isinstance(part, str) and (
        "[" in part or part in ("int", "float", "bool", "str", "literal", "constrained-int")
    )


def _first_inside(key: str) -> str:
    return next((other for other in known_keys() if other.startswith(f"{key}.")), "train.epochs")


def _unknown(key: str, value: Any) -> _Problem:
    keys, received, shown = known_keys(), _brief(value), shown_address(key)
    if key in keys:
        families = [
            family.model_fields["family"].default
            for family in nested_specs(ModelSpec)
            if key.removeprefix("model.") in family.model_fields
        ]
        return _Problem(
            f"{key} is a setting of another model.family than the chosen one.",
            f"Set model.family to {' or '.join(families)}, or remove {key}.",
            received,
        )
    nearest = _find_similar(key, keys)
    section = next((part for part in _parents(key) if is_section(part)), "")
    command = f"trainer spec {section}".rstrip()
    remedy = f"Did you mean {nearest}?" if nearest else f"Run `{command}` to list the settings."
    return _Problem(f"{shown} is not a setting.", remedy, received)


def _parents(key: str) -> Iterator[str]:
    """Yield the keys above the dotted `key`, the nearest one first."""
    while "." in key:
        key = key.rpartition(".")[0]
        yield key


def _find_similar(key: str, keys: list[str]) -> str:
    """Return the most similar setting; empty if there is none."""
    section, _, last = key.rpartition(".")
    inside = [other for other in keys if other.startswith(f"{section}.")]
    ordered = [*inside, *(other for other in keys if other not in inside)]
    names = {other: other.rpartition(".")[2] for other in ordered}
    similar = [
        *(other for other in ordered if names[other] == last),
        *(other for other in ordered if len(last) > 3 and names[other].startswith(last)),
        # Initials match in any section: optimizer.lr means optimizer.learning_rate.
        *(other for other in ordered if len(last) > 1 and _initials(names[other]) == last),
        *(other for other in inside if last in names[other].split("_")),
        *_similar_names(last, inside, names, _SIMILAR),
        *_similar_names(last, ordered, names, _SIMILAR_ELSEWHERE),
    ]
    if not similar:
        return ""
    return _first_inside(similar[0]) if is_section(similar[0]) else similar[0]


def _similar_names(last: str, keys: list[str], names: dict[str, str], cutoff: float) -> list[str]:
    """Return the keys whose last part is most similar to `last`."""
    nearest = difflib.get_close_matches(last, [names[key] for key in keys], n=1, cutoff=cutoff)
    return [key for key in keys if names[key] in nearest]


def _initials(name: str) -> str:
    return "".join(word[:1] for word in name.split("_"))


def _brief(value: Any) -> str:
    # shown_repr and not repr, because a few lines of YAML can describe a value of gigabytes.
    try:
        text = shown_repr(value)
    except ValueError:
        return "a number of thousands of digits"
    return text if len(text) <= 80 else text[:77] + "..."
