"""The proxy that the environment names for a request.

In: a session and a URL. Out: nothing, or an error where no request could be sent by way of this proxy.
"""

from __future__ import annotations

import requests
from requests.utils import select_proxy
from urllib3.exceptions import LocationParseError
from urllib3.util import parse_url

from trainer.exits import UsageError


def require_proxy(session: requests.Session, url: str) -> None:
    """Raise UsageError if the proxy for `url` is no address, on which requests itself ends with a TypeError.

    The message leaves the address out: it may hold a password.
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
            f"The proxy of the environment is no address. Set {scheme}_PROXY or ALL_PROXY to "
            f"http://HOST:PORT, or unset it. Received: no host for {scheme.lower()}:// requests"
        )
