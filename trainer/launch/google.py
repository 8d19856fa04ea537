"""Client for Google Cloud REST APIs, with error translation.

Request and response bodies are JSON. An error response becomes an exception with a remedy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import requests

from trainer.errors import TemporaryError, UsageError

_SCOPES = ["https://www.googleapis.com/auth/cloud-platform"]
_SECONDS = 60.0
_HINTS = {
    401: "your credentials are not taken; `gcloud auth application-default login` makes new ones",
    403: "you or the job's account lack a right, or the interface isn't enabled in the project",
    404: "there is no such project, region or job",
    409: "there is one of this name already",
    429: "a quota is used up; wait, ask for more, or take another region",
}
_NOTHING_THERE = 404
_LATER = (408, 500, 502, 503, 504)


class NothingThereError(UsageError):
    """A resource that does not exist, or that may not be read (404)."""


class Google:
    """Authorized session; an http:// URL, as in tests, is used without credentials."""

    def __init__(self, url: str) -> None:
        """Raise UsageError if this machine has no credentials."""
        self._session = requests.Session() if url.startswith("http://") else _authorized()

    def get(self, url: str, **query: str | list[str]) -> dict[str, Any]:
        """Return the resource at `url`. Raises UsageError, TemporaryError."""
        return self._ask("GET", url, None, query)

    def find(self, url: str, **query: str | list[str]) -> dict[str, Any] | None:
        """Return the resource at `url`, None if it does not exist. Raises UsageError, TemporaryError."""
        try:
            return self.get(url, **query)
        except NothingThereError:
            return None

    def post(self, url: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Post `body` and return the response. Raises UsageError, TemporaryError."""
        return self._ask("POST", url, body, {})

    def delete(self, url: str) -> None:
        """Delete the resource at `url`. Raises UsageError, TemporaryError."""
        self._ask("DELETE", url, None, {})

    @property
    def account(self) -> str:
        """Account of the credentials, for messages."""
        credentials = getattr(self._session, "credentials", None)
        email = getattr(credentials, "service_account_email", None) or getattr(credentials, "account", None)
        return str(email or ("none needed" if credentials is None else "of a person or a machine"))

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def _ask(self, method: str, url: str, body: Any, query: Mapping[str, Any]) -> dict[str, Any]:
        from google.auth.exceptions import GoogleAuthError

        try:
            answer = self._session.request(method, url, json=body, params=dict(query), timeout=_SECONDS)
        except GoogleAuthError as error:
            raise UsageError(
                "Your credentials are not taken; `gcloud auth application-default login` makes new ones.",
                received=f"{str(error)[:200]}",
            ) from None
        except requests.RequestException as error:
            if "NameResolutionError" in str(error):
                raise UsageError(
                    "There is no such address: see the region's name, and that this machine has a network.",
                    received=f"{urlsplit(url).hostname}",
                ) from None
            raise TemporaryError("Google Cloud can't be reached.", received=f"{str(error)[:200]}") from None
        if answer.ok:
            return _object(answer)
        said = _message(answer)
        if answer.status_code in _LATER:
            raise TemporaryError("Google Cloud can't answer now; try again later.", received=said)
        hint = _HINTS.get(answer.status_code, "the request isn't taken")
        kind = NothingThereError if answer.status_code == _NOTHING_THERE else UsageError
        raise kind(f"Google Cloud refuses it: {hint}. Received: {said}")


def _object(answer: requests.Response) -> dict[str, Any]:
    try:
        value = answer.json()
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise TemporaryError(
            "What came is no answer of Google Cloud, as where a proxy wants a login; see what is between.",
            received=f"{answer.status_code}, {answer.text[:80]!r}",
        )
    return value


def _authorized() -> requests.Session:
    import google.auth
    from google.auth.exceptions import DefaultCredentialsError
    from google.auth.transport.requests import AuthorizedSession

    try:
        credentials, _ = google.auth.default(scopes=_SCOPES)
    except (DefaultCredentialsError, OSError, ValueError) as error:
        raise UsageError(
            "This machine has no credentials for Google Cloud; `gcloud auth application-default login` makes "
            "some.",
            received=f"{(str(error).splitlines() or ['nothing'])[0][:200]}",
        ) from None
    session: requests.Session = AuthorizedSession(credentials)  # type: ignore[no-untyped-call]
    return session


def _message(answer: requests.Response) -> str:
    try:
        return f"{answer.status_code}, {answer.json()['error']['message']}"[:300]
    except (ValueError, KeyError, TypeError):
        return f"{answer.status_code} {answer.reason}"
