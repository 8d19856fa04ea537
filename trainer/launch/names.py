"""Names that Kubernetes takes: DNS labels and subdomains of RFC 1123."""

from __future__ import annotations

import re

from trainer.exits import UsageError

_LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_LONGEST_LABEL, _LONGEST_SUBDOMAIN = 63, 253


def check_namespace(name: str) -> None:
    """Raise UsageError unless `name` can be that of a namespace, a DNS label."""
    if not re.fullmatch(_LABEL, name):
        raise UsageError(
            f"--namespace has small letters, digits and -, and no dots, {_LONGEST_LABEL} characters at most. "
            f"Received: {name!r}"
        )


def check_service_account(name: str) -> None:
    """Raise UsageError unless `name` can be that of a service account, a DNS subdomain."""
    _check_subdomain("--service-account", name, _LONGEST_SUBDOMAIN)


def check_queue_name(name: str) -> None:
    """Raise UsageError unless `name` can be a local queue's: a DNS subdomain that fits into a label."""
    _check_subdomain("--queue", name, _LONGEST_LABEL)


def _check_subdomain(option: str, name: str, longest: int) -> None:
    if len(name) > longest or not re.fullmatch(rf"{_LABEL}(\.{_LABEL})*", name):
        raise UsageError(
            f"{option} has parts of small letters, digits and -, with single dots between them, {longest} "
            f"characters at most. Received: {name!r}"
        )
