"""Client for Google Cloud REST APIs, with validation of responses and error translation.

Request and response bodies are JSON. An error response becomes an exception with a remedy.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import requests

from trainer.errors import TemporaryError, UsageError, causes_of
from trainer.launch.responses import Response, ResponseError, read_response

_SERVICE = "Google Cloud"
_SCOPES = ["https://www.googleapis.com/auth/cloud-platform"]
_SECONDS = 60.0
_CREATE_CREDENTIALS = "Create new ones with `gcloud auth application-default login`."
_ERRORS = {
    401: ("Google Cloud rejects your credentials.", _CREATE_CREDENTIALS),
    403: (
        "Google Cloud denies access.",
        "Check that you and the job's service account have the permission, and that the API is enabled: "
        "`trainer doctor vertex` shows both.",
    ),
    404: ("Google Cloud has no such project, region or job.", "Check the names."),
    409: ("A resource of this name already exists.", "Choose another name."),
    429: (
        "A quota of Google Cloud is exhausted.", "Wait, request a higher quota, or choose another region.",
    ),
}  # fmt: skip
"""Problem and remedy by HTTP status."""
_NOT_FOUND = 404
_TEMPORARY = (408, 500, 502, 503, 504)


class NotFoundError(UsageError):
    """A resource that does not exist, or that may not be read (404)."""


class PermissionsResponse(Response):
    """Permissions of the caller on a resource."""

    permissions: tuple[str, ...] = ()


class Google:
    """Authorized session; an http:// URL, as in tests, is used without credentials."""

    def __init__(self, url: str) -> None:
        """Raise UsageError if this machine has no credentials."""
        self._session = requests.Session() if url.startswith("http://") else _authorized_session()

    def get(self, url: str, schema: type[Response] = Response, **query: str | list[str]) -> dict[str, Any]:
        """Return the resource at `url`. Raises UsageError, TemporaryError."""
        return self._request("GET", url, schema, query=query)

    def find(
        self, url: str, schema: type[Response] = Response, **query: str | list[str]
    ) -> dict[str, Any] | None:
        """Return the resource at `url`, None if it does not exist. Raises UsageError, TemporaryError."""
        try:
            return self.get(url, schema, **query)
        except NotFoundError:
            return None

    def post(self, url: str, body: Mapping[str, Any], schema: type[Response] = Response) -> dict[str, Any]:
        """Post `body` and return the response. Raises UsageError, TemporaryError."""
        return self._request("POST", url, schema, body=body)

    def delete(self, url: str) -> None:
        """Delete the resource at `url`. Raises UsageError, TemporaryError."""
        self._request("DELETE", url, Response)

    @property
    def account(self) -> str:
        """Account of the credentials, for messages."""
        credentials = getattr(self._session, "credentials", None)
        email = getattr(credentials, "service_account_email", None) or getattr(credentials, "account", None)
        return str(email or ("no credentials needed" if credentials is None else "account unknown"))

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def _request(
        self,
        method: str,
        url: str,
        schema: type[Response],
        body: Mapping[str, Any] | None = None,
        query: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        from google.auth.exceptions import GoogleAuthError

        try:
            response = self._session.request(
                method, url, json=body, params=dict(query or {}), timeout=_SECONDS
            )
        except GoogleAuthError as error:
            raise UsageError(*_ERRORS[401], f"{str(error)[:200]}") from None
        except requests.RequestException as error:
            if any(isinstance(cause, socket.gaierror) for cause in causes_of(error)):
                raise UsageError(
                    "The host name does not exist.",
                    "Check the name of the region, and that this machine has a network connection.",
                    urlsplit(url).hostname,
                ) from None
            raise TemporaryError(
                "Google Cloud cannot be reached.",
                "Check the network connection, then try again.",
                f"{str(error)[:200]}",
            ) from None
        if response.ok:
            return read_response(schema, _parse(response), _SERVICE)
        raise _error_of(response)


def _error_of(response: requests.Response) -> UsageError | TemporaryError:
    message = _message(response)
    if response.status_code in _TEMPORARY:
        return TemporaryError("Google Cloud is temporarily unavailable.", "Try again later.", message)
    kind = NotFoundError if response.status_code == _NOT_FOUND else UsageError
    return kind(*_ERRORS.get(response.status_code, ("Google Cloud rejects the request.", "")), message)


def _parse(response: requests.Response) -> Any:
    try:
        return response.json()
    except (ValueError, RecursionError):
        raise ResponseError(_SERVICE, f"{response.status_code}, {response.text[:80]!r}") from None


def _authorized_session() -> requests.Session:
    import google.auth
    from google.auth.exceptions import DefaultCredentialsError
    from google.auth.transport.requests import AuthorizedSession

    try:
        credentials, _ = google.auth.default(scopes=_SCOPES)
    except (DefaultCredentialsError, OSError, ValueError) as error:
        raise UsageError(
            "This machine has no Google Cloud credentials.",
            "Create them with `gcloud auth application-default login`.",
            f"{(str(error).splitlines() or ['nothing'])[0][:200]}",
        ) from None
    session: requests.Session = AuthorizedSession(credentials)  # type: ignore[no-untyped-call]
    return session


def _message(response: requests.Response) -> str:
    try:
        return f"{response.status_code}, {response.json()['error']['message']}"[:300]
    except (ValueError, KeyError, TypeError):
        return f"{response.status_code} {response.reason}"
