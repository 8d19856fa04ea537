"""Strict YAML parsing and dumping for specs.

Differs from plain PyYAML in three points: 1e-3 is a number, a duplicate key is an error, and only mappings
with string keys are accepted.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from trainer.errors import UsageError
from trainer.sanitize import shown_address


class _Loader(yaml.SafeLoader):
    """SafeLoader with the floats of YAML 1.2 and without duplicate keys."""


# YAML 1.1, which PyYAML implements, requires a dot in every float, so it reads 1e-3 as a string.
_EXPONENT = re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789"))


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[str, Any]:
    for key, _ in node.value:
        if key.tag == "tag:yaml.org,2002:merge":
            raise yaml.constructor.ConstructorError(
                None, None, "merge keys (<<) are not supported; write the settings out", key.start_mark
            )
    keys = [loader.construct_object(key) for key, _ in node.value]
    for key in keys:
        if not isinstance(key, str):
            raise yaml.constructor.ConstructorError(
                None, None, f"key {key!r} is not a string; put quotes around it", node.start_mark
            )
        if keys.count(key) > 1:
            raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key!r}", node.start_mark)
    return {str(key): value for key, value in loader.construct_mapping(node, deep=True).items()}


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


class _Dumper(yaml.SafeDumper):
    """SafeDumper with every mapping in block style and every list on one line."""


# Quotes a name such as 1234e56, so that it remains a string.
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789"))
_Dumper.add_representer(
    list, lambda dumper, value: dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=True)
)


# PyYAML's own constructors raise the last four for tags with an invalid value.
_NOT_YAML = (yaml.YAMLError, ValueError, RecursionError, IndexError, KeyError, AttributeError, TypeError)


class _Repr(reprlib.Repr):
    """Short repr of a value, with addresses stripped of passwords and queries."""

    def repr_str(self, x: str, level: int) -> str:
        """Strip an address before it is shortened, which would remove its beginning."""
        return super().repr_str(shown_address(x), level)


def shown_repr(value: object) -> str:
    """Return a short repr of a value of any size that is safe to display. Raises ValueError."""
    return _Repr().repr(value)


def parse_value(text: str) -> Any:
    """Parse `text` as a YAML value: 3, 1e-3, true, [1, 2] or plain words. Raises UsageError."""
    try:
        return yaml.load(text, Loader=_Loader)
    except _NOT_YAML as error:
        raise UsageError(
            f"The value is not valid YAML: {_short(error)}.",
            "Put quotes around text with special characters.",
            received=shown_repr(text),
        ) from None


def parse_mapping(text: str, where: str) -> dict[str, Any]:
    """Parse the YAML document `text` as a mapping; an empty document is {}.

    `where` names the file in messages. Raises UsageError.
    """
    try:
        value = yaml.load(text, Loader=_Loader)
    except _NOT_YAML as error:
        raise UsageError(
            f"{where} is not valid YAML: {_short(error)}.",
            "Correct this line.",
            received=_line(text, error),
        ) from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UsageError(
            f"{where} must be a YAML mapping of settings.",
            "Write one `key: value` per line.",
            received=type(value).__name__,
        )
    return value


def dump_mapping(value: Mapping[str, Any]) -> str:
    """Return `value` as YAML, with keys in their order and lists on one line."""
    return yaml.dump(_to_builtins(value), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def _to_builtins(value: Any) -> Any:
    """Return `value` with plain dicts and lists, which YAML can represent."""
    if isinstance(value, Mapping):
        return {key: _to_builtins(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_to_builtins(item) for item in value]
    return value


def _line(text: str, error: Exception) -> str:
    """Return the line of `text` that `error` refers to, shortened; by default the first line."""
    mark = getattr(error, "problem_mark", None)
    lines = text.splitlines() or [""]
    index = min(mark.line, len(lines) - 1) if mark else 0
    # It may end a URL whose password has a line break.
    is_end_of_url = "@" in lines[index] and "://" not in lines[index] and "://" in "".join(lines[:index])
    return "..." if is_end_of_url else shown_repr(lines[index])


def _short(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or (str(error) or type(error).__name__).splitlines()[0]
    # It names the alias, which may be a part of a password.
    problem = "undefined alias" if isinstance(error, yaml.composer.ComposerError) else shown_address(problem)
    return f"{problem}, line {mark.line + 1}, column {mark.column + 1}" if mark else problem
