"""Normalization of data URLs, so that signed URLs of the same data compare equal."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

_SIGNED = ("x-amz-", "x-goog-", "x-oss-", "x-ms-")
"""Prefixes of the query parameters of signed URLs of Amazon, Google, Alibaba and Azure."""
_PARAMETERS = {
    "signature", "sig", "hmac", "token", "access_token", "expires", "expiry", "policy", "key-pair-id",
    "awsaccesskeyid", "googleaccessid", "ossaccesskeyid",
    "sv", "ss", "srt", "sr", "sp", "spr", "sip", "st", "se", "skoid", "sktid", "skt", "ske", "sks", "skv",
}  # fmt: skip
"""Query parameters of other signatures; the last ones belong to Azure's shared access signatures."""


def unsigned(value: Any) -> Any:
    """Return a web address without user, password, fragment and signature parameters.

    Other values, and addresses that can't be parsed, are returned unchanged.
    """
    if not isinstance(value, str) or not value.lower().startswith(("http://", "https://")):
        return value
    try:
        parts = urlsplit(value)
        pairs = parse_qsl(parts.query, keep_blank_values=True)
    except ValueError:
        return value
    kept = [(name, text) for name, text in pairs if not _is_of_signature(name.lower())]
    host = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=host, query=urlencode(kept), fragment="").geturl()


def _is_of_signature(name: str) -> bool:
    return name in _PARAMETERS or name.startswith(_SIGNED)
