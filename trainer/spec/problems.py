"""Validation messages for a spec.

Formats pydantic's errors, one sentence per problem, with the key, the received value and the nearest existing
key.
"""

from __future__ import annotations

import difflib
import re
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from trainer.errors import UsageError
from trainer.sanitize import shown_address
from trainer.spec.schema import ModelSpec, RunSpec
from trainer.spec.text import shown_repr

_SHOWN_PROBLEMS = 5
_MANY_CHOICES = 9
_PATTERNS = {
    "data.checksum": "md5: and 32 hex digits, or sha256: and 64",
    "run_name": "letters, digits, '.', '_' and '-', 128 at most, a letter or digit first",
}
FAMILIES = tuple(each.model_fields["family"].default for each in get_args(get_args(ModelSpec)[0]))
"""Names of the union branches of `model` in pydantic's error locations."""


def known_keys() -> list[str]:
    """Return every dotted key of a `RunSpec`, including those of all model families."""
    return _keys(RunSpec, "")


def require_known_key(key: str, *values: Any) -> None:
    """Raise UsageError, with the most similar key, if no spec has the dotted `key`.

    `values` is the value that was set, if any.
    """
    keys = known_keys()
    # Class names are arbitrary, so any key below class_weights is valid.
    if key in keys or key.startswith("train.class_weights."):
        return
    raise UsageError(_unknown(key, values[0] if values else key, keys))


def describe_problems(error: ValidationError) -> str:
    """Return one sentence per problem that pydantic found, at most the first five."""
    problems = error.errors(include_url=False)
    # Each branch of a union reports an error: the deepest one is the most specific; errors of one key are
    # merged.
    by_key: dict[str, str] = {}
    for problem in problems:
        key, text = _dotted(problem["loc"]), _describe(problem)
        by_key[key] = _either(by_key[key], text) if key in by_key else text
    lines = [line for key, line in by_key.items() if not any(each.startswith(f"{key}.") for each in by_key)]
    more = len(lines) - _SHOWN_PROBLEMS
    return "\n".join(lines[:_SHOWN_PROBLEMS] + ([f"... and {more} more"] if more > 0 else []))


def is_section(key: str) -> bool:
    """Return whether the top-level `key` is a section with settings of its own."""
    return any(each.startswith(f"{key}.") for each in known_keys())


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


def _either(one: str, other: str) -> str:
    """Merge two sentences about the same value into one that lists both valid inputs."""
    begin, middle, end = one.partition(". Received: ")
    _, should, rest = other.partition(": input should be ")
    return f"{begin} or {rest}" if middle and should and rest.endswith(end) else other


def _describe(problem: Any) -> str:
    key = shown_address(_dotted(problem["loc"]))
    received = problem["input"]
    name, colon, value = str(problem["loc"][-1] if problem["loc"] else "").partition(":")
    if colon and received is None:
        return shown_address(
            f"In YAML a space follows the colon: {{{name}: {value}}}. Received: {{{name}:{value}}}"
        )
    if problem["type"] == "extra_forbidden":
        outer, _, inner = str(problem["loc"][-1]).partition(".")
        if inner:
            return (
                f"In a file {key} is two lines, `{outer}:` and below it, indented, `{inner}: ...`. "
                f"Received: {_brief(received)}"
            )
        return _unknown(key, received, known_keys())
    if problem["type"] == "union_tag_invalid":
        expected, received = problem["ctx"]["expected_tags"], problem["ctx"]["tag"]
        return f"{key}.family must be one of {expected}. Received: {_brief(received)}"
    if problem["type"] in ("model_type", "model_attributes_type"):
        return f"{key} must hold settings, such as {_first_inside(key)}. Received: {_brief(received)}"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "literal_error" and isinstance(received, str):
        message += _hint_of_choice(problem["ctx"]["expected"], received)
    if problem["type"] == "string_pattern_mismatch":
        message = f"input should be {_PATTERNS.get(key, 'of another form')}"
    if not key:
        return message if "Received: " in message else f"{message}."
    return f"{key}: {message[0].lower()}{message[1:]}. Received: {_brief(received)}"


def _hint_of_choice(expected: str, received: str) -> str:
    """Suggest the nearest of many choices; empty if there are only a few or none is similar."""
    choices = re.findall(r"'([^']*)'", expected)
    nearest = difflib.get_close_matches(received, choices, n=1) if len(choices) >= _MANY_CHOICES else []
    return f" (did you mean {nearest[0]}?)" if nearest else ""


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
    return next((each for each in known_keys() if each.startswith(f"{key}.")), "train.epochs")


def _unknown(key: str, value: Any, keys: list[str]) -> str:
    if key in keys:
        return f"{key} is a setting of another model.family than the one chosen. Received: {_brief(value)}"
    nearest = _nearest(key, keys)
    hint = f"Did you mean {nearest}?" if nearest else "`trainer recipes demo` shows settings that exist."
    return f"{shown_address(key)} is not a setting. {hint} Received: {_brief(value)}"


def _nearest(key: str, keys: list[str]) -> str:
    """Return the most similar setting; empty if there is none."""
    section, _, last = key.rpartition(".")
    names = {each: each.rpartition(".")[2] for each in keys}
    inside = [each for each in keys if each.startswith(f"{section}.")]
    nearest = [
        *(each for each in keys if len(last) > 3 and names[each].startswith(last)),
        # Initials match in any section: optimizer.lr means optimizer.learning_rate.
        *(each for each in keys if len(last) > 1 and _initials(names[each]) == last),
        *(each for each in inside if last in names[each].split("_")),
        *difflib.get_close_matches(key, keys, n=1, cutoff=0.5),
        *(each for each in keys if names[each] == last),
    ]
    if not nearest:
        return ""
    return _first_inside(nearest[0]) if is_section(nearest[0]) else nearest[0]


def _initials(name: str) -> str:
    return "".join(word[:1] for word in name.split("_"))


def _brief(value: Any) -> str:
    # shown_repr and not repr, because a few lines of YAML can describe a value of gigabytes.
    try:
        text = shown_repr(value)
    except ValueError:
        return "a number of thousands of digits"
    return text if len(text) <= 80 else text[:77] + "..."
