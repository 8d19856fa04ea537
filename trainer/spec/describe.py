"""Descriptions of the settings, generated from the schema: type, default and meaning of each key.

`docs/settings.md` and `trainer spec` show them.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import json
import re
import textwrap
import types
import typing
from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from trainer.spec.problems import FAMILIES, nested_specs, require_known_key
from trainer.spec.schema import RunSpec

_LARGEST_BOUND = 2**31 - 2
"""Larger bounds come from the number format, so they are not shown."""
_FAMILY = "model.family"
_CLASS_WEIGHTS = "train.class_weights"
_TYPE_NAMES = {int: "integer", float: "number", str: "text", bool: "`true` or `false`"}


class Setting(NamedTuple):
    """Description of one key of the spec."""

    key: str
    type: str
    """Valid values."""
    default: str
    """Default in YAML; null if there is none."""
    meaning: str


class Section(NamedTuple):
    """Settings of one spec class, without those of nested ones."""

    title: str
    """Key of the section, "model, family NAME" for a network family, and "Run" for the top level."""
    summary: str
    family: str
    """Network family that has these settings; empty for other sections."""
    settings: list[Setting]
    """Types and defaults in Markdown: literal values in backticks."""


def describe_setting(key: str = "") -> list[Setting]:
    """Return the settings at or below `key`, in plain text; an empty key selects all settings.

    A setting with different descriptions in several network families is returned once per description.
    Raises UsageError, with the most similar key, for an unknown key.
    """
    key = _CLASS_WEIGHTS if key.startswith(f"{_CLASS_WEIGHTS}.") else key
    if key:
        require_known_key(key)
    families: dict[Setting, list[str]] = {}
    for section in describe_sections():
        for setting in section.settings:
            if not key or setting.key == key or setting.key.startswith(f"{key}."):
                families.setdefault(_plain(setting), []).append(section.family)
    return [_with_families(setting, names) for setting, names in families.items()]


def describe_sections() -> list[Section]:
    """Return all sections of a spec, in the order of the schema."""
    return list(_sections(RunSpec, ""))


def _sections(spec: type[BaseModel], prefix: str) -> Iterator[Section]:
    settings = list(_settings(spec, prefix))
    if settings:
        family = next((setting.default.strip("`") for setting in settings if setting.key == _FAMILY), "")
        title = f"model, family {family}" if family else prefix.rstrip(".") or "Run"
        yield Section(title, " ".join(inspect.cleandoc(spec.__doc__ or "").split()), family, settings)
    for name, field in spec.model_fields.items():
        for nested in nested_specs(field.annotation):
            yield from _sections(nested, f"{prefix}{name}.")


def _settings(spec: type[BaseModel], prefix: str) -> Iterator[Setting]:
    """Yield the settings of `spec` itself, without those of nested specs."""
    meanings = _field_docstrings(spec)
    for name, field in spec.model_fields.items():
        if not nested_specs(field.annotation):
            type_text = _type_text(field.annotation, field.metadata)
            yield Setting(prefix + name, type_text, _default_text(field), meanings.get(name, ""))


def _plain(setting: Setting) -> Setting:
    """Return a description without Markdown; all families have the same `model.family`."""
    if setting.key == _FAMILY:
        default = RunSpec.model_fields["model"].default.family
        return setting._replace(type=", ".join(FAMILIES), default=default)
    return setting._replace(type=setting.type.replace("`", ""), default=setting.default.strip("`"))


def _with_families(setting: Setting, families: list[str]) -> Setting:
    """Return a description whose meaning names the network families that have the setting."""
    if not families[0] or setting.key == _FAMILY:
        return setting
    *others, last = families
    names = f"{', '.join(others)} or {last}" if others else last
    meaning = f"With {_FAMILY} {names}: {setting.meaning[:1].lower()}{setting.meaning[1:]}"
    return setting._replace(meaning=meaning)


def _field_docstrings(spec: type[BaseModel]) -> dict[str, str]:
    """Return the docstring of each field of `spec`, joined to one line."""
    body = typing.cast(ast.ClassDef, ast.parse(textwrap.dedent(inspect.getsource(spec))).body[0]).body
    docstrings: dict[str, str] = {}
    for node, following in itertools.pairwise(body):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            match following:
                case ast.Expr(value=ast.Constant(value=str(text))):
                    docstrings[node.target.id] = " ".join(text.split())
    return docstrings


def _type_text(annotation: Any, metadata: Iterable[Any] = ()) -> str:
    """Return the description of a type in Markdown."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _type_text(arguments[0], [*arguments[1:], *metadata])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type_text(part, metadata) for part in arguments if part is not type(None))
    if origin is tuple:
        items = dict.fromkeys(_type_text(part) for part in arguments if part is not Ellipsis)
        return f"{'list' if Ellipsis in arguments else 'pair'} of {_plural(' and '.join(items))}"
    if origin is dict:
        return f"mapping of names to {_plural(_type_text(arguments[1]))}"
    bounds = _bounds_text(metadata) if annotation in (int, float) else ""
    return f"{_TYPE_NAMES[annotation]} ({bounds})" if bounds else _TYPE_NAMES[annotation]


def _plural(type_text: str) -> str:
    return re.sub("integer|number", lambda noun: f"{noun[0]}s", type_text)


def _bounds_text(metadata: Iterable[Any]) -> str:
    """Return the bounds of a number as text, empty if there are none."""
    bounds = {
        name: getattr(constraint, name)
        for constraint in _constraints(metadata)
        for name in ("ge", "gt", "le", "lt")
        if getattr(constraint, name, None) is not None
    }
    low, high = bounds.get("ge", bounds.get("gt")), bounds.get("le", bounds.get("lt"))
    texts = []
    if low is not None:
        texts.append(f"{'at least' if 'ge' in bounds else 'above'} {low:g}")
    if high is not None and high <= _LARGEST_BOUND:
        texts.append(f"{'at most' if 'le' in bounds else 'below'} {high:.10g}")
    return ", ".join(texts)


def _constraints(metadata: Iterable[Any]) -> Iterator[Any]:
    """Yield the constraints of a field, including those inside a FieldInfo."""
    for constraint in metadata:
        yield from _constraints(constraint.metadata) if isinstance(constraint, FieldInfo) else [constraint]


def _default_text(field: FieldInfo) -> str:
    """Return the default of a field in YAML, as Markdown."""
    return f"`{field.default if isinstance(field.default, str) else json.dumps(field.default)}`"
