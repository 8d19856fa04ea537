"""Retry policy for Cloud Storage, and messages of permanent failures."""

from __future__ import annotations

from functools import partial

import pytest
import urllib3
from google.api_core import exceptions as api
from google.auth import exceptions as auth
from google.cloud.storage.exceptions import DataCorruption

from trainer.errors import TemporaryError, UsageError
from trainer.storage.retry import explanation, is_lost_session
from trainer.storage.retry import repeated as repeated_slowly

repeated = partial(repeated_slowly, first_wait_seconds=0.001)


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
def test_a_network_or_a_service_that_fails_is_asked_again_and_then_told(error: Exception) -> None:
    action = Failing(error)
    assert repeated(action, 5.0) == "done"
    assert action.calls == 2
    with pytest.raises(api.RetryError) as raised:
        repeated(Failing(*[error] * 9), 0.0)
    assert raised.value.cause is error


def test_credentials_that_nobody_could_be_asked_for_are_asked_for_again_and_refused_ones_not() -> None:
    unreachable, refused = auth.RefreshError("no route"), auth.RefreshError("revoked")
    unreachable.__cause__ = auth.TransportError("no route")
    no_account = auth.RefreshError("404")
    no_account.__cause__ = auth.TransportError("404", "no service account on this machine")
    assert repeated(Failing(unreachable), 5.0) == "done"
    assert isinstance(explanation(unreachable, "gs://b/x", "read"), TemporaryError)
    for error in (refused, no_account):
        with pytest.raises(auth.RefreshError):
            repeated(Failing(error), 5.0)
        assert isinstance(explanation(error, "gs://b/x", "read"), UsageError)


def used_up(error: Exception) -> Exception:
    return api.RetryError("the retries are used up", cause=error)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (api.Forbidden("no"), UsageError, "roles/storage.objectUser"),
        (api.Unauthorized("who"), UsageError, "application-default login"),
        (api.TooManyRequests("slow down"), TemporaryError, "retries are used up"),
        (api.BadRequest("name"), UsageError, "check the name"),
        (used_up(api.NotFound("no such upload session")), TemporaryError, "retries are used up"),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_what_the_bucket_says_is_told_with_what_to_do(
    error: Exception, kind: type[Exception], words: str
) -> None:
    told = explanation(error, "gs://b/x", "written")
    assert type(told) is kind
    assert words in str(told)
    assert "gs://b/x" in str(told)


def test_damage_is_asked_again_three_times_and_what_is_final_not_at_all() -> None:
    damage = DataCorruption(None, "other bytes")
    assert repeated(Failing(*[damage] * 3), 0.0) == "done"
    with pytest.raises(DataCorruption):
        repeated(Failing(*[damage] * 4), 0.0)
    for name in ("x", "crc32c validation failed", "a doesn't match calculated b"):
        missing = Failing(api.NotFound(f"no such object: {name}"))
        with pytest.raises(api.NotFound):
            repeated(missing, 5.0)
        assert missing.calls == 1
        assert isinstance(
            explanation(api.NotFound(f"no such object: {name}"), "gs://b/x", "read"), UsageError
        )
    for status in (404, 410):
        lost = api.from_http_status(status, "no such session")  # type: ignore[no-untyped-call]
        assert repeated(Failing(lost), 5.0, is_lost_session) == "done"


def test_what_takes_longer_than_the_retries_is_asked_again_three_times_all_the_same() -> None:
    error = ConnectionResetError()
    assert repeated(Failing(*[error] * 3), 0.0) == "done"
    with pytest.raises(api.RetryError):
        repeated(Failing(*[error] * 4), 0.0)
    # Damaged data has its own retry count.
    damage = DataCorruption(None, "other bytes")
    assert repeated(Failing(*[error, damage] * 3), 0.0) == "done"
