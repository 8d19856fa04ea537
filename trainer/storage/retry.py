"""Retry policy and error translation for Cloud Storage."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from google.api_core import exceptions as api
from google.auth import exceptions as auth
from google.cloud.storage.exceptions import DataCorruption, InvalidResponse

from trainer.compat import is_retryable
from trainer.errors import TemporaryError, TrainerError, UsageError

_MOST_DAMAGED = 3
_LEAST_RETRIES = 3
FIRST_WAIT_SECONDS = 0.2
_MOST_WAIT_SECONDS = 10.0
_DAMAGED = ("doesn't match calculated", "crc32c validation failed")
"""Parts of the error messages of Cloud Storage, and of its testbench, on a checksum mismatch."""

Result = TypeVar("Result")


def repeated(
    action: Callable[[], Result],
    seconds: float,
    begins_anew: Callable[[Exception], bool] = lambda error: False,
    may_pass: Callable[[Exception], bool] = lambda error: False,
    first_wait_seconds: float = FIRST_WAIT_SECONDS,
) -> Result:
    """Return the result of `action`, retrying all of it with exponential backoff.

    Damaged bytes, and errors for which `begins_anew` is true, are retried three times. Network and service
    errors, and errors for which `may_pass` is true, are retried for `seconds` from the first failure on, and
    at least three times: the client's own deadline starts with the operation, so a long operation would get
    no retry. The first backoff is at most `first_wait_seconds`; it doubles with each retry, up to 10 s.
    Raises the last error of `action`, as the cause of a RetryError when the time is used up.
    """
    failed_at: list[float] = []
    damaged, wait = 0, first_wait_seconds
    while True:
        try:
            return action()
        except Exception as error:
            if begins_anew(error) or is_damage(error):
                damaged += 1
                if damaged > _MOST_DAMAGED:
                    raise
            elif not (is_retryable(error) or _is_unreachable(error) or may_pass(error)):
                raise
            else:
                failed_at.append(time.monotonic())
            if len(failed_at) > _LEAST_RETRIES and failed_at[-1] - failed_at[0] > seconds:
                # RetryError keeps a network error from being taken for a fault of this program.
                raise api.RetryError("the retries are used up", cause=error) from error  # type: ignore[no-untyped-call]
        # Jitter, so that clients that failed together do not retry together.
        time.sleep(wait * random.uniform(0.5, 1.0))
        wait = min(2.0 * wait, _MOST_WAIT_SECONDS)


def _is_unreachable(error: Exception) -> bool:
    """Return whether the credentials server was unreachable; it may start late."""
    cause = error.__cause__
    # If the server refused the request, the second argument is its response.
    return (
        isinstance(error, auth.RefreshError)
        and isinstance(cause, auth.TransportError)
        and len(cause.args) < 2
    )


def is_lost_session(error: Exception) -> bool:
    """Return whether the bucket has lost a resumable upload session, so that the upload must restart."""
    # The library has no class for 410, so it is not a ClientError.
    return isinstance(error, api.GoogleAPICallError) and error.code in (404, 410)


def is_refusal(error: Exception) -> bool:
    """Return whether the bucket or the credentials server refused the request."""
    if isinstance(error, InvalidResponse):
        return error.response.status_code in (401, 403)
    refused = (api.Unauthorized, api.Forbidden, auth.RefreshError, auth.DefaultCredentialsError)
    return isinstance(error, refused)


def is_damage(error: Exception) -> bool:
    """Return whether bytes failed their checksum, on download or at the bucket."""
    # Messages of other errors, such as 404, quote object names, which could match.
    is_checked = isinstance(error, (api.BadRequest, api.PreconditionFailed))
    return isinstance(error, DataCorruption) or (is_checked and any(each in str(error) for each in _DAMAGED))


def explanation(error: Exception, uri: str, done: str) -> TrainerError:
    """Translate the final error of a request, after its retries, into one of this package's errors."""
    if is_used_up := isinstance(error, api.RetryError):
        error = error.cause or error
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
    if is_damage(error):
        return TemporaryError(f"{uri} arrived damaged, which its checksum shows; try again.", received=reason)
    if is_used_up and is_refusal(error):
        return TemporaryError(
            f"{uri} could not be {done}: the bucket refuses what it allowed before. Check the credentials "
            f"and rights, then run the same command again.",
            received=reason,
        )
    if is_used_up:  # a retried error may pass later, also a lost upload session
        return TemporaryError(f"{uri} could not be {done}; the retries are used up.", received=reason)
    return _final(error, uri, done, reason)


def _final(error: Exception, uri: str, done: str, reason: str) -> TrainerError:
    """Translate an error that was not retried."""
    if isinstance(error, api.PreconditionFailed):
        return UsageError(
            f"{uri} can't be {done}: a rule of the bucket forbids it. Ask who keeps the bucket, or choose "
            f"another place.",
            received=reason,
        )
    if isinstance(error, api.NotFound):
        return UsageError(f"There is no such bucket or object as {uri}; check the name.", received=reason)
    if isinstance(error, api.Unauthorized):
        return UsageError(
            f"{uri} can't be {done} without credentials, or with these; `gcloud auth application-default "
            f"login` gets them, on a machine of the cloud its service account has them.",
            received=reason,
        )
    if isinstance(error, api.Forbidden):
        return UsageError(
            f"{uri} can't be {done} with these credentials; grant their account a role on the bucket such as "
            f"roles/storage.objectUser.",
            received=reason,
        )
    is_refused = isinstance(error, (auth.RefreshError, auth.DefaultCredentialsError))
    if is_refused and not (error.retryable or _is_unreachable(error)):  # type: ignore[attr-defined]
        return UsageError(
            f"The credentials for {uri} don't work; `gcloud auth application-default login` renews them.",
            received=reason,
        )
    if isinstance(error, api.ClientError) and not isinstance(error, api.TooManyRequests):
        return UsageError(f"{uri} can't be {done}; check the name.", received=reason)
    return TemporaryError(f"{uri} could not be {done}; the retries are used up.", received=reason)
