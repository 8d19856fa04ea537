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

_MAX_DAMAGED = 3
_MIN_RETRIES = 3
FIRST_WAIT_SECONDS = 0.2
_MAX_WAIT_SECONDS = 10.0
_DAMAGED = ("doesn't match calculated", "crc32c validation failed")
"""Parts of the error messages of Cloud Storage, and of its testbench, on a checksum mismatch."""

Result = TypeVar("Result")


def retried(
    action: Callable[[], Result],
    seconds: float,
    restarts: Callable[[Exception], bool] = lambda error: False,
    is_transient: Callable[[Exception], bool] = lambda error: False,
    first_wait_seconds: float = FIRST_WAIT_SECONDS,
) -> Result:
    """Return the result of `action`, retrying all of it with exponential backoff.

    Damaged bytes, and errors for which `restarts` is true, are retried three times. Network and service
    errors, and errors for which `is_transient` is true, are retried for `seconds` from the first failure on,
    and at least three times: the client's own deadline starts with the operation, so a long operation would
    get no retry. The first backoff is at most `first_wait_seconds`; it doubles with each retry, up to 10 s.
    Raises the last error of `action`, as the cause of a RetryError when the time is used up.
    """
    failed_at: list[float] = []
    damaged, wait = 0, first_wait_seconds
    while True:
        try:
            return action()
        except Exception as error:
            if restarts(error) or is_damage(error):
                damaged += 1
                if damaged > _MAX_DAMAGED:
                    raise
            elif not (is_retryable(error) or _is_unreachable(error) or is_transient(error)):
                raise
            else:
                failed_at.append(time.monotonic())
            if len(failed_at) > _MIN_RETRIES and failed_at[-1] - failed_at[0] > seconds:
                # RetryError keeps a network error from being taken for a fault of this program.
                raise api.RetryError("all retries failed", cause=error) from error  # type: ignore[no-untyped-call]
        # Jitter, so that clients that failed together do not retry together.
        time.sleep(wait * random.uniform(0.5, 1.0))
        wait = min(2.0 * wait, _MAX_WAIT_SECONDS)


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
    return isinstance(error, DataCorruption) or (is_checked and any(part in str(error) for part in _DAMAGED))


def translate_error(error: Exception, uri: str, done: str) -> TrainerError:
    """Translate the final error of a request, after its retries, into one of this package's errors."""
    if has_exhausted_retries := isinstance(error, api.RetryError):
        error = error.cause or error
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
    if is_damage(error):
        return TemporaryError(f"The checksum of {uri} does not match.", "Try again.", received=reason)
    if has_exhausted_retries and is_refusal(error):
        return TemporaryError(
            f"{uri} could not be {done}: the bucket now denies an operation that it allowed before.",
            "Check the credentials and permissions, then run the same command again.",
            received=reason,
        )
    if has_exhausted_retries:  # a retried error may pass later, also a lost upload session
        return _failed_retries(uri, done, reason)
    return _translate_final(error, uri, done, reason)


def _translate_final(error: Exception, uri: str, done: str, reason: str) -> TrainerError:
    """Translate an error that was not retried."""
    if isinstance(error, api.PreconditionFailed):
        return UsageError(
            f"{uri} cannot be {done}: a policy of the bucket forbids it.",
            "Ask the owner of the bucket, or choose another location.",
            received=reason,
        )
    if isinstance(error, api.NotFound):
        return UsageError(f"The bucket or object {uri} does not exist.", "Check the name.", received=reason)
    if isinstance(error, api.Unauthorized):
        return UsageError(
            f"{uri} cannot be {done}: credentials are missing or invalid.",
            "Log in with `gcloud auth application-default login`; in the cloud, check the service account.",
            received=reason,
        )
    if isinstance(error, api.Forbidden):
        return UsageError(
            f"{uri} cannot be {done}: the account has no permission.",
            "Grant it a role on the bucket, such as roles/storage.objectUser.",
            received=reason,
        )
    is_refused = isinstance(error, (auth.RefreshError, auth.DefaultCredentialsError))
    if is_refused and not (error.retryable or _is_unreachable(error)):  # type: ignore[attr-defined]
        return UsageError(
            f"The credentials for {uri} are invalid or expired.",
            "Renew them with `gcloud auth application-default login`.",
            received=reason,
        )
    if isinstance(error, api.ClientError) and not isinstance(error, api.TooManyRequests):
        return UsageError(f"{uri} cannot be {done}.", "Check the name.", received=reason)
    return _failed_retries(uri, done, reason)


def _failed_retries(uri: str, done: str, reason: str) -> TemporaryError:
    return TemporaryError(
        f"{uri} could not be {done}: all retries failed.",
        "Run the same command again later.",
        received=reason,
    )
