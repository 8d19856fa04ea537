"""HTTPS requests with translated errors.

A request returns an open response, or raises `RetryableError` if a retry may succeed and a `TrainerError`
otherwise. Certificates are always verified. Set REQUESTS_CA_BUNDLE to use a private certificate authority.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urljoin, urlsplit

import requests
from urllib3.exceptions import HTTPError, LocationValueError, ReadTimeoutError

from trainer import __version__
from trainer.errors import DataError, TrainerError, UsageError, causes_of
from trainer.sanitize import shown_address, without_secrets
from trainer.storage.proxies import require_proxy

_MAX_REDIRECTS = 10
_MAX_RETRY_AFTER_SECONDS = 60.0
# Small, because an incomplete chunk is lost when the server stops sending.
_CHUNK_BYTES = 1 << 16


class RetryableError(Exception):
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
        raise UsageError("This is not a valid URL.", "Check its host.", received=shown_address(url)) from None
    if parts.scheme.lower() != "https":
        raise UsageError(
            "Downloads require https, because data sent over http can be modified on the way.",
            "Use an https:// address.",
            received=shown_address(url),
        )
    if not host:
        raise UsageError("The URL has no host.", "Check the URL.", received=shown_address(url))
    return url


def get(
    session: requests.Session, url: str, headers: dict[str, str], timeouts: tuple[float, float]
) -> requests.Response:
    """Send a GET request; return the response with its body unread.

    Follows at most 10 redirects, each to https. `timeouts` are the connect and the read timeout in seconds.
    Raises RetryableError, DataError, UsageError.
    """
    # identity: no compression, so that lengths, ranges and checksums refer to the file itself.
    sent_headers = {"User-Agent": f"trainer/{__version__}", "Accept-Encoding": "identity", **headers}
    address = url
    for _ in range(_MAX_REDIRECTS + 1):
        require_proxy(session, address)
        with _translate_failures(address):
            response, target = _send(session, address, headers=sent_headers, timeout=timeouts)
            next_address = urljoin(address, target or "")
        if target is None:
            return response
        response.close()
        address = require_https(next_address)
    raise DataError(
        f"The server redirects more than {_MAX_REDIRECTS} times.",
        "Check the address.",
        received=shown_address(url),
    )


def _send(session: requests.Session, url: str, **options: Any) -> tuple[requests.Response, str | None]:
    """Send a GET request; return the response and the redirect target. Closes the response on failure."""
    responses: list[requests.Response] = []

    def remember(response: requests.Response, **options: Any) -> None:
        responses.append(response)

    try:
        # requests parses the redirect itself; if that fails, the response is only available through a hook.
        response = session.get(
            url, stream=True, allow_redirects=False, hooks={"response": remember}, **options
        )
        return response, session.get_redirect_target(response)
    except ValueError:
        for response in responses:
            response.close()
        raise


def require_content(response: requests.Response, url: str) -> None:
    """Raise RetryableError (server error) or DataError unless the response contains the file."""
    status, status_line = response.status_code, f"{response.status_code} {response.reason}"
    if status in (200, 206):
        return
    if status in (408, 425, 429) or status >= 500:
        raise RetryableError(f"the server responded with {status_line}", _retry_after(response))
    if status in (401, 403):
        problem, remedy = "The server denies access", "Check the address and whether it is public."
    elif status in (404, 410):
        problem, remedy = "There is no file at this address", "Check the address."
    else:
        problem, remedy = "The server does not send the file", "Check the address."
    raise DataError(f"{problem} ({status_line}).", remedy, received=shown_address(url))


def read_body(response: requests.Response, url: str) -> Iterator[bytes]:
    """Yield the bytes of the body as they were sent. Raises RetryableError, DataError."""
    while True:
        with _translate_failures(url):
            chunk: bytes = response.raw.read(_CHUNK_BYTES, decode_content=False)
        if not chunk:
            return
        yield chunk


@contextmanager
def _translate_failures(url: str) -> Iterator[None]:
    try:
        yield
    except requests.exceptions.InvalidProxyURL as error:
        raise UsageError(
            "HTTPS_PROXY is not a valid proxy address.",
            "Correct or unset it.",
            received=without_secrets(str(error)),
        ) from error
    except (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema, LocationValueError) as error:
        raise UsageError(
            "This is not a valid URL.", "Check its host and port.", received=shown_address(url)
        ) from error
    except (requests.exceptions.RequestException, HTTPError) as error:
        raise _connection_error(error, url) from error
    except ValueError as error:
        # Neither requests nor urllib defines an error for an invalid redirect.
        raise DataError(
            "The server redirects to an invalid address.", "Check the address.", received=shown_address(url)
        ) from error
    except OSError as error:
        # The only plain OSError from requests: the certificate bundle is missing.
        raise _bad_bundle(error) from error


def _bad_bundle(error: BaseException) -> UsageError:
    return UsageError("The trusted certificates cannot be read.", "Check REQUESTS_CA_BUNDLE.", received=error)


def _connection_error(error: Exception, url: str) -> TrainerError | RetryableError:
    cause = _tls_failure(error)
    if isinstance(cause, ssl.SSLCertVerificationError):
        return DataError(
            f"The certificate of the server is not trusted ({getattr(cause, 'verify_message', cause)}).",
            "Check the address and the clock of this machine. For a private certificate authority, set "
            "REQUESTS_CA_BUNDLE to its PEM file.",
            received=shown_address(url),
        )
    if cause and cause.library in ("X509", "PEM"):
        return _bad_bundle(cause)
    host = urlsplit(url).hostname
    timeouts = (requests.exceptions.Timeout, ReadTimeoutError, TimeoutError)
    if any(isinstance(cause, timeouts) for cause in causes_of(error)):
        return RetryableError(f"{host} did not respond in time")
    inner = _innermost(error)
    reason = without_secrets(str(getattr(inner, "strerror", None) or inner), [url])
    return RetryableError(f"the connection to {host} failed ({reason})")


def _tls_failure(error: BaseException) -> ssl.SSLError | None:
    return next((cause for cause in causes_of(error) if isinstance(cause, ssl.SSLError)), None)


def _innermost(error: BaseException) -> BaseException:
    return list(causes_of(error))[-1]


def _retry_after(response: requests.Response) -> float:
    text = response.headers.get("Retry-After", "")
    return min(float(text), _MAX_RETRY_AFTER_SECONDS) if text.isdecimal() else 0.0
