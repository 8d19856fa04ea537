"""Validation of Kubernetes names: DNS labels and subdomains of RFC 1123."""

from __future__ import annotations

import re

from trainer.errors import UsageError

_LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_LONGEST_LABEL, _LONGEST_SUBDOMAIN = 63, 253


def check_namespace(name: str) -> None:
    """Raise UsageError unless `name` is a valid namespace name, a DNS label."""
    if not re.fullmatch(_LABEL, name):
        raise UsageError(
            f"--namespace has small letters, digits and -, and no dots, {_LONGEST_LABEL} characters at most.",
            received=f"{name!r}",
        )


def check_service_account(name: str) -> None:
    """Raise UsageError unless `name` is a valid service account name, a DNS subdomain."""
    _check_subdomain("--service-account", name, _LONGEST_SUBDOMAIN)


def check_queue_name(name: str) -> None:
    """Raise UsageError unless `name` is a valid local queue name: a DNS subdomain of a label's length."""
    _check_subdomain("--queue", name, _LONGEST_LABEL)


def _check_subdomain(option: str, name: str, longest: int) -> None:
    if len(name) > longest or not re.fullmatch(rf"{_LABEL}(\.{_LABEL})*", name):
        raise UsageError(
            f"{option} has parts of small letters, digits and -, with single dots between them, {longest} "
            f"characters at most.",
            received=f"{name!r}",
        )
