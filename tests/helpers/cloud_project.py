"""Fake Google Cloud project: its APIs, permissions, quotas and buckets."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

Answer = tuple[int, dict[str, Any]]


@dataclass
class CloudProject:
    """State of the project."""

    name: str
    region: str
    disabled: set[str] = field(default_factory=set)
    """Disabled APIs, such as aiplatform."""
    lacking: set[str] = field(default_factory=set)
    """Permissions that the caller does not have."""
    buckets: set[str] = field(default_factory=lambda: {"bucket"})
    accounts: set[str] = field(default_factory=lambda: {"me@acme.iam"})
    quotas: dict[str, int] = field(default_factory=dict)
    """Vertex AI limits, by metric."""
    compute_quotas: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Limit and usage in the region, by metric."""
    global_quotas: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Limit and usage across all regions, by metric."""

    def answer(self, url: str, body: dict[str, Any]) -> Answer | None:
        """Return status and body of the response, or None if the URL is not one of these APIs."""
        path, query = urlsplit(url).path, parse_qs(urlsplit(url).query)
        for pattern, answer in (
            (r"/v1/projects/([^/:]+):testIamPermissions", lambda _: self._granted(body["permissions"])),
            (r"/v1/projects/([^/]+)/services/([a-z]+)\.googleapis\.com", self._service),
            (r"/v1/projects/([^/]+)/serviceAccounts/([^/:]+):testIamPermissions",
             lambda match: self._account(match[2], body["permissions"])),
            (r"/v1beta1/projects/([^/]+)/services/aiplatform.googleapis.com/consumerQuotaMetrics/(.+)",
             self._quota),
            (r"/compute/v1/projects/([^/]+)/regions/([^/]+)",
             lambda _: (200, _quotas(self.region, self.compute_quotas))),
            (r"/compute/v1/projects/([^/]+)", lambda _: (200, _quotas(self.name, self.global_quotas))),
        ):  # fmt: skip
            if (match := re.fullmatch(pattern, path)) is not None:
                return answer(match) if match[1] == self.name else _nothing("Project not found.")
        if (match := re.fullmatch(r"/storage/v1/b/([^/]+)(/iam/testPermissions)?", path)) is not None:
            if match[1] not in self.buckets:
                return _nothing("The specified bucket does not exist.")
            return self._granted(query["permissions"]) if match[2] else (200, {"name": match[1]})
        return None

    def _granted(self, permissions: list[str]) -> Answer:
        granted = [permission for permission in permissions if permission not in self.lacking]
        return 200, {"permissions": granted} if granted else {}

    def _service(self, match: re.Match[str]) -> Answer:
        return 200, {"state": "DISABLED" if match[2] in self.disabled else "ENABLED"}

    def _account(self, email: str, permissions: list[str]) -> Answer:
        return (
            self._granted(permissions)
            if unquote(email) in self.accounts
            else _nothing("Unknown service account")
        )

    def _quota(self, match: re.Match[str]) -> Answer:
        metric = unquote(match[2]).partition("/")[2]
        if metric not in self.quotas:
            return _nothing("Quota metric not found.")
        here = {"effectiveLimit": str(self.quotas[metric]), "dimensions": {"region": self.region}}
        buckets = [
            {"effectiveLimit": "0"},
            here,
            {"effectiveLimit": "99", "dimensions": {"region": "elsewhere"}},
        ]
        return 200, {"metric": unquote(match[2]), "consumerQuotaLimits": [{"quotaBuckets": buckets}]}


def _nothing(message: str) -> Answer:
    return 404, {"error": {"code": 404, "message": message}}


def _quotas(name: str, quotas: dict[str, tuple[int, int]]) -> dict[str, Any]:
    quotas = [
        {"metric": metric, "limit": float(limit), "usage": float(usage)}
        for metric, (limit, usage) in quotas.items()
    ]
    return {"name": name, "quotas": quotas}
