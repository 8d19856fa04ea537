"""Retry policy for Cloud Storage, and messages of permanent failures."""

from __future__ import annotations

from functools import partial

import pytest
import urllib3
from google.api_core import exceptions as api
from google.auth import exceptions as auth
from google.cloud.storage.exceptions import DataCorruption

from trainer.errors import TemporaryError, UsageError
from trainer.storage.retry import is_lost_session, translate_error
from trainer.storage.retry import retried as retried_slowly

retried = partial(retried_slowly, first_wait_seconds=0.001)


class Failing:
    """Action that raises `errors` one after another, and then succeeds."""

    def __init__(self, *errors: Exception) -> None:
        self.errors, self.calls = list(errors), 0

    def __call__(self) -> str:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError(),
        urllib3.exceptions.ProtocolError("cut"),
        api.from_http_status(408, "slow"),
        api.from_http_status(503, "busy"),
    ],
    ids=lambda error: type(error).__name__ + str(getattr(error, "code", "")),
)
def test_network_and_service_errors_are_retried_and_then_raised(error: Exception) -> None:
    action = Failing(error)
    assert retried(action, 5.0) == "done"
    assert action.calls == 2
    with pytest.raises(api.RetryError) as raised:
        retried(Failing(*[error] * 9), 0.0)
    assert raised.value.cause is error


def test_unreachable_credentials_server_is_retried_and_a_refusal_is_not() -> None:
    unreachable, refused = auth.RefreshError("no route"), auth.RefreshError("revoked")
    unreachable.__cause__ = auth.TransportError("no route")
    no_account = auth.RefreshError("404")
    no_account.__cause__ = auth.TransportError("404", "no service account on this machine")
    assert retried(Failing(unreachable), 5.0) == "done"
    assert isinstance(translate_error(unreachable, "gs://b/x", "read"), TemporaryError)
    for error in (refused, no_account):
        with pytest.raises(auth.RefreshError):
            retried(Failing(error), 5.0)
        assert isinstance(translate_error(error, "gs://b/x", "read"), UsageError)


def used_up(error: Exception) -> Exception:
    return api.RetryError("all retries failed", cause=error)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (api.Forbidden("no"), UsageError, "roles/storage.objectUser"),
        (api.Unauthorized("who"), UsageError, "application-default login"),
        (api.TooManyRequests("slow down"), TemporaryError, "all retries failed"),
        (api.BadRequest("name"), UsageError, "Check the name"),
        (used_up(api.NotFound("no such upload session")), TemporaryError, "all retries failed"),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_errors_of_the_bucket_are_translated_with_a_remedy(
    error: Exception, kind: type[Exception], words: str
) -> None:
    translated = translate_error(error, "gs://b/x", "written")
    assert type(translated) is kind
    assert words in str(translated)
    assert "gs://b/x" in str(translated)


def test_damage_is_retried_three_times_and_final_errors_are_not_retried() -> None:
    damage = DataCorruption(None, "other bytes")
    assert retried(Failing(*[damage] * 3), 0.0) == "done"
    with pytest.raises(DataCorruption):
        retried(Failing(*[damage] * 4), 0.0)
    for name in ("x", "crc32c validation failed", "a doesn't match calculated b"):
        missing = Failing(api.NotFound(f"no such object: {name}"))
        with pytest.raises(api.NotFound):
            retried(missing, 5.0)
        assert missing.calls == 1
        assert isinstance(
            translate_error(api.NotFound(f"no such object: {name}"), "gs://b/x", "read"), UsageError
        )
    for status in (404, 410):
        lost = api.from_http_status(status, "no such session")  # type: ignore[no-untyped-call]
        assert retried(Failing(lost), 5.0, is_lost_session) == "done"


def test_operation_longer_than_the_time_limit_is_retried_three_times() -> None:
    error = ConnectionResetError()
    assert retried(Failing(*[error] * 3), 0.0) == "done"
    with pytest.raises(api.RetryError):
        retried(Failing(*[error] * 4), 0.0)
    # Damaged data has its own retry count.
    damage = DataCorruption(None, "other bytes")
    assert retried(Failing(*[error, damage] * 3), 0.0) == "done"
