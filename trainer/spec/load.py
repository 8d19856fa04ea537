"""Merging of a recipe, a YAML file and single settings into a validated `RunSpec`.

Settings are `key.path=value` texts. A `UsageError` names the key, the received value and the nearest existing
key.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from pydantic import ValidationError

from trainer import recipes
from trainer.errors import UsageError
from trainer.sanitize import bare_address, is_address, shown_values
from trainer.spec.checked import OPEN
from trainer.spec.problems import invalid_spec, is_section, require_known_key
from trainer.spec.schema import ExportSpec, RunSpec
from trainer.spec.text import dump_mapping, parse_mapping, parse_value, shown_repr

# Settings that do not affect the result: output folder, name, resources and publication.
_UNHASHED: dict[str, Any] = {
    "recipe": True,
    "output": True,
    "run_name": True,
    "publish": True,
    "data": {"cache_mib", "max_extracted_mib", "staged_mib"},
    "train": {
        "steps_per_call",
        "checkpoint",
        "grace_seconds",
        "devices",
        "meet_seconds",
        "max_stalled_starts",
        "log_interval_seconds",
        "profile",
    },
}

_SIGNED = ("x-amz-", "x-goog-", "x-oss-", "x-ms-")
"""Prefixes of the query parameters of signed URLs of Amazon, Google, Alibaba and Azure."""
_PARAMETERS = {
    "signature", "sig", "hmac", "token", "access_token", "expires", "expiry", "policy", "key-pair-id",
    "awsaccesskeyid", "googleaccessid", "ossaccesskeyid",
    "sv", "ss", "srt", "sr", "sp", "spr", "sip", "st", "se", "skoid", "sktid", "skt", "ske", "sks", "skv",
}  # fmt: skip
"""Query parameters of other signatures; the last ones belong to Azure's shared access signatures."""


def load_spec(
    path: Path | None = None,
    recipe: str | None = None,
    settings: Iterable[str] = (),
    overrides: Mapping[str, Any] | None = None,
    text: str | None = None,
) -> RunSpec:
    """Merge the sources into a spec; later ones take precedence.

    First the recipe (`recipe`, else the file's own `recipe:` key), then the file at `path` or its `text`
    instead of a file, then `overrides` (dotted key to value, None is ignored), then `settings`
    (`key.path=value` texts, the value in YAML). Raises UsageError.
    """
    file_values = parse_mapping(_read(path), str(path)) if path else {}
    if text is not None:
        file_values = parse_mapping(text, "the submitted spec")
    # Sections of the file must be valid even if options replace them.
    sections = {key: value for key, value in file_values.items() if is_section(key)}
    if any(not isinstance(value, dict) for value in sections.values()):
        _validated(sections)
    name = file_values.get("recipe") if recipe is None else recipe
    values: dict[str, Any] = {}
    if name is not None:
        values = {**parse_mapping(recipes.read_recipe(str(name)), f"recipe {name}"), "recipe": name}
    # The requested recipe is recorded, even if the file names another one.
    values = _overlay(values, {**file_values, **({"recipe": name} if name else {})})
    for key, value in (overrides or {}).items():
        if value is not None:
            values = _overlay(values, _with_setting({}, key, value))
    # Settings are merged first, so that their order does not matter, for example for the model family.
    merged_settings: dict[str, Any] = {}
    for text in settings:
        merged_settings = _with_setting(merged_settings, *_split_setting(text))
    return _validated(_overlay(values, merged_settings))


def read_spec(path: Path) -> RunSpec:
    """Read the resolved spec that `dump_spec` wrote to `path`. Raises UsageError."""
    return parse_spec(_read(path), str(path))


def parse_spec(text: str, where: str) -> RunSpec:
    """Parse the resolved spec `text` written by `dump_spec`; `where` names the source in a UsageError."""
    return _validated(parse_mapping(text, where))


def with_choices(spec: RunSpec, settings: Mapping[str, Any]) -> RunSpec:
    """Return `spec` with `settings` for everything that was not set in it, with no choices left.

    settings: nested, as in a spec. Raises UsageError if they are incompatible with what was set.
    """
    values = spec.model_dump(mode="json", exclude_unset=True)
    return _validated({**_overlay(dict(settings), values), "choose": "none"})


def explicit_settings(spec: RunSpec) -> dict[str, Any]:
    """Return the explicitly set settings of `spec`, by dotted key."""
    return flatten(spec.model_dump(mode="json", exclude_unset=True))


def dump_spec(spec: RunSpec) -> str:
    """Return the whole spec as YAML; `load_spec` on it gives an equal spec.

    If settings are still to be chosen, contains only those that were set, so that the others can be chosen.
    """
    return dump_mapping(_values(spec))


def dump_shown_spec(spec: RunSpec) -> str:
    """Return the YAML of `dump_spec` for display, with addresses stripped of passwords and queries."""
    return dump_mapping(shown_values(_values(spec)))


def _values(spec: RunSpec) -> dict[str, Any]:
    return spec.model_dump(mode="json", exclude_unset=spec.choose != "none")


def has_secret(spec: RunSpec) -> bool:
    """Return whether the spec has an address with a hidden part, such as a password or a query."""
    return dump_shown_spec(spec) != dump_spec(spec)


def spec_digest(spec: RunSpec, weights_sha256: str = "") -> str:
    """Return the SHA-256, 64 hex digits, of all settings that can change the result.

    Addresses count without passwords and queries: a URL with a new signature refers to the same data, and
    other data have another data digest. With `weights_sha256`, the digest of a pretrained weights file, the
    weights count by content and not by path.
    """
    values = shown_values(spec.model_dump(mode="json", exclude=_UNHASHED), bare_address)
    _remove_new_settings(values)
    if weights_sha256:
        values["model"]["weights"] = f"sha256:{weights_sha256}"
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _remove_new_settings(values: dict[str, Any]) -> None:
    """Remove settings that specs of earlier versions did not have, unless they are set."""
    for name in ("denoise", "exclude", "relabel", "group"):
        if values["data"][name] is None:
            del values["data"][name]
    if values["export"] == ExportSpec().model_dump(mode="json"):
        del values["export"]


def setting_digests(spec: RunSpec) -> dict[str, str]:
    """Return a short digest of each setting that `spec_digest` covers, by dotted key.

    They show in which settings two processes differ, without the values being sent.
    """
    values = flatten(shown_values(spec.model_dump(mode="json", exclude=_UNHASHED), bare_address))
    return {key: hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16] for key, value in values.items()}


def spec_changes(old: RunSpec, new: RunSpec) -> list[str]:
    """Return the dotted keys with different values that affect the result, as `key: old -> new`.

    URLs are compared without their signatures only; queries count, because the contents are not known yet.
    """
    before, after = (flatten(spec.model_dump(mode="json", exclude=_UNHASHED)) for spec in (old, new))
    pairs = {key: (before.get(key, "unset"), after.get(key, "unset")) for key in [*before, *after]}
    return [
        _change(key, *pair)
        for key, pair in pairs.items()
        if _without_signature(pair[0]) != _without_signature(pair[1])
    ]


def _change(key: str, old: Any, new: Any) -> str:
    before, after = shown_values(old), shown_values(new)
    return f"{key}: {before} -> {'the same URL with another query' if before == after else after}"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UsageError(
            f"The spec cannot be read: {reason}.", "Check the path and the file.", received=path
        ) from None


def _split_setting(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip() or is_address(text):
        raise UsageError(
            "A setting must have the form key.path=value.",
            "Write it as in train.epochs=3.",
            received=shown_repr(text),
        )
    # An address is text, even if it contains characters that are special in YAML, such as ' #'.
    return key.strip(), value if is_address(value) else parse_value(value)


def _with_setting(values: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    if key == "recipe":
        raise UsageError(
            "A recipe cannot be chosen by a setting.",
            "Use --recipe NAME, or `recipe: NAME` in the spec file.",
            received=f"recipe={shown_repr(value)}",
        )
    require_known_key(key, value)
    for part in reversed(key.split(".")):
        value = {part: value}
    return _merged(values, value)


def _overlay(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Merge `over` into `base`; a new data.source drops the checksum of the old one."""
    data, new = base.get("data"), over.get("data")
    if (
        isinstance(data, dict)
        and isinstance(new, dict)
        and new.get("source", data.get("source")) != data.get("source")
    ):
        base = {**base, "data": {key: value for key, value in data.items() if key != "checksum"}}
    return _merged(base, over)


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Merge `over` into `base` recursively."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict) and not _has_other_family(old, value):
            merged[key] = _merged(old, value)
        else:
            merged[key] = value
    return merged


def _has_other_family(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    # Settings of one model family are not valid for another, so they are replaced, not merged.
    return bool(new.get("family", old.get("family")) != old.get("family", new.get("family")))


def _validated(values: dict[str, Any]) -> RunSpec:
    try:
        is_open = values.get("choose", "none") != "none"
        return RunSpec.model_validate(values, context=OPEN if is_open else None)
    except ValidationError as error:
        raise invalid_spec(error) from None


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return all settings of a spec by their dotted keys."""
    settings: dict[str, Any] = {}
    for key, value in values.items():
        settings |= (
            flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
        )
    return settings


def _without_signature(value: Any) -> Any:
    """Return a web address without user, password, fragment and signature parameters.

    Other values, and addresses that cannot be parsed, are returned unchanged.
    """
    if not isinstance(value, str) or not value.lower().startswith(("http://", "https://")):
        return value
    try:
        parts = urlsplit(value)
        pairs = parse_qsl(parts.query, keep_blank_values=True)
    except ValueError:
        return value
    parameters = [(name, text) for name, text in pairs if not _is_of_signature(name.lower())]
    host = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=host, query=urlencode(parameters), fragment="").geturl()


def _is_of_signature(name: str) -> bool:
    return name in _PARAMETERS or name.startswith(_SIGNED)
