"""HTTPS requests with translated errors.

A request returns an open response, or raises `Broken` if a retry may succeed and a `TrainerError` otherwise.
Certificates are always verified. Set REQUESTS_CA_BUNDLE to use a private certificate authority.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests
from urllib3.exceptions import HTTPError, LocationValueError

from trainer import __version__
from trainer.errors import DataError, TrainerError, UsageError
from trainer.sanitize import shown_address, without_secrets
from trainer.storage.proxies import require_proxy

_MAX_REDIRECTS = 10
_MAX_RETRY_AFTER_SECONDS = 60.0
# Small, because an incomplete chunk is lost when the server stops sending.
_CHUNK_BYTES = 1 << 16


class Broken(Exception):  # noqa: N818
    """A failure that can be retried; the message describes it."""

    def __init__(self, reason: str, retry_after_seconds: float = 0.0) -> None:
        super().__init__(reason)
        self.retry_after_seconds = retry_after_seconds


def require_https(url: str) -> str:
    """Return `url` if its scheme is https and it has a host. Raises UsageError."""
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        raise UsageError("This isn't a URL: its host can't be read.", received=shown_address(url)) from None
    if parts.scheme.lower() != "https":
        raise UsageError(
            "Downloads come over https only, since anyone on the way can change what comes over http. "
            "Use an https:// address.",
            received=shown_address(url),
        )
    if not host:
        raise UsageError("The URL names no host.", received=shown_address(url))
    return url


def get(
    session: requests.Session, url: str, headers: dict[str, str], timeouts: tuple[float, float]
) -> requests.Response:
    """Send a GET request; return the response with its body unread.

    Follows at most 10 redirects, each to https. `timeouts` are the connect and the read timeout in seconds.
    Raises Broken, DataError, UsageError.
    """
    # identity: no compression, so that lengths, ranges and checksums refer to the file itself.
    sent = {"User-Agent": f"trainer/{__version__}", "Accept-Encoding": "identity", **headers}
    place = url
    for _ in range(_MAX_REDIRECTS + 1):
        require_proxy(session, place)
        with _failures_named(place):
            response, target = _opened(session, place, headers=sent, timeout=timeouts)
            following = urljoin(place, target or "")
        if target is None:
            return response
        response.close()
        place = require_https(following)
    raise DataError(f"The server redirects more than {_MAX_REDIRECTS} times.", received=shown_address(url))


def _opened(session: requests.Session, url: str, **options: Any) -> tuple[requests.Response, str | None]:
    """Send a GET request; return the response and the redirect target. Closes the response on failure."""
    arrived: list[requests.Response] = []

    def remember(response: requests.Response, **options: Any) -> None:
        arrived.append(response)

    try:
        # requests parses the redirect itself; if that fails, the response is only available through a hook.
        response = session.get(
            url, stream=True, allow_redirects=False, hooks={"response": remember}, **options
        )
        return response, session.get_redirect_target(response)
    except ValueError:
        for response in arrived:
            response.close()
        raise


def require_content(response: requests.Response, url: str) -> None:
    """Raise Broken (server error) or DataError unless the response contains the file."""
    status, what = response.status_code, f"{response.status_code} {response.reason}"
    if status in (200, 206):
        return
    if status in (408, 425, 429) or status >= 500:
        raise Broken(f"the server answered {what}", _retry_after(response))
    if status in (401, 403):
        problem = "The server refuses access; check the address and whether it is public"
    elif status in (404, 410):
        problem = "There is nothing at this address; check it"
    else:
        problem = "The server doesn't give the file; check the address"
    raise DataError(f"{problem} ({what}).", received=shown_address(url))


def read_body(response: requests.Response, url: str) -> Iterator[bytes]:
    """Yield the bytes of the body as they were sent. Raises Broken, DataError."""
    while True:
        with _failures_named(url):
            chunk: bytes = response.raw.read(_CHUNK_BYTES, decode_content=False)
        if not chunk:
            return
        yield chunk


@contextmanager
def _failures_named(url: str) -> Iterator[None]:
    try:
        yield
    except requests.exceptions.InvalidProxyURL as error:
        raise UsageError(
            "HTTPS_PROXY names no proxy; correct or unset it.", received=f"{without_secrets(str(error))}"
        ) from error
    except (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema, LocationValueError) as error:
        raise UsageError(
            "This isn't a URL that can be fetched; check its host and port.", received=shown_address(url)
        ) from error
    except (requests.exceptions.RequestException, HTTPError) as error:
        raise _named(error, url) from error
    except ValueError as error:
        # Neither requests nor urllib defines an error for an invalid redirect.
        raise DataError("The server redirects to what is no address.", received=shown_address(url)) from error
    except OSError as error:
        # The only plain OSError from requests: the certificate bundle is missing.
        raise _bad_bundle(error) from error


def _bad_bundle(error: BaseException) -> UsageError:
    return UsageError("The trusted certificates can't be read; check REQUESTS_CA_BUNDLE.", received=error)


def _named(error: Exception, url: str) -> TrainerError | Broken:
    cause = _tls_failure(error)
    if isinstance(cause, ssl.SSLCertVerificationError):
        return DataError(
            f"The server's certificate isn't trusted ({getattr(cause, 'verify_message', cause)}). "
            f"Check the address and this machine's clock; for a certificate authority of your own set "
            f"REQUESTS_CA_BUNDLE to its PEM file.",
            received=shown_address(url),
        )
    if cause and cause.library in ("X509", "PEM"):
        return _bad_bundle(cause)
    host = urlsplit(url).hostname
    if isinstance(error, requests.exceptions.Timeout) or "timed out" in str(error):
        return Broken(f"{host} did not answer in time")
    inner = _innermost(error)
    reason = without_secrets(str(getattr(inner, "strerror", None) or inner), [url])
    return Broken(f"the connection to {host} failed ({reason})")


def _tls_failure(error: BaseException) -> ssl.SSLError | None:
    return next((one for one in _chain(error) if isinstance(one, ssl.SSLError)), None)


def _innermost(error: BaseException) -> BaseException:
    return list(_chain(error))[-1]


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield the error and its causes; the libraries nest exceptions up to four deep."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__ or one.__context__


def _retry_after(response: requests.Response) -> float:
    text = response.headers.get("Retry-After", "")
    return min(float(text), _MAX_RETRY_AFTER_SECONDS) if text.isdecimal() else 0.0
