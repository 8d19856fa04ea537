"""Validation of the proxy that the environment sets for a request."""

from __future__ import annotations

import requests
from requests.utils import select_proxy
from urllib3.exceptions import LocationParseError
from urllib3.util import parse_url

from trainer.errors import UsageError


def require_proxy(session: requests.Session, url: str) -> None:
    """Raise UsageError if the proxy for `url` is not a valid address; requests itself raises TypeError.

    The message omits the address, which may contain a password.
    """
    settings = session.merge_environment_settings(url, {}, None, None, None)
    proxy = select_proxy(url, settings["proxies"])
    if not proxy:
        return
    try:
        host = parse_url(proxy).host
    except LocationParseError:
        host = None
    if not host:
        scheme = url.partition(":")[0].upper()
        raise UsageError(
            "The proxy in the environment is not a valid address.",
            f"Set {scheme}_PROXY or ALL_PROXY to http://HOST:PORT, or unset it.",
            received=f"no host for {scheme.lower()}:// requests",
        )
