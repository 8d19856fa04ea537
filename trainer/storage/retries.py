"""What to do about a request to a bucket that failed: ask again, or say why not.

In: an action, and the errors of the client library. Out: what the action returned in the end, or
one of this package's errors.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from google.api_core import exceptions as api
from google.auth import exceptions as auth
from google.cloud.storage.exceptions import DataCorruption, InvalidResponse
from google.cloud.storage.retry import _should_retry

from trainer.exits import TemporaryError, TrainerError, UsageError

_MOST_DAMAGED = 3
_LEAST_RETRIES = 3
FIRST_WAIT_SECONDS = 0.2
_MOST_WAIT_SECONDS = 10.0
_DAMAGED = ("doesn't match calculated", "crc32c validation failed")
"""In the answer of the service, and of its testbench, to bytes with another checksum."""

Result = TypeVar("Result")


def repeated(
    action: Callable[[], Result],
    seconds: float,
    begins_anew: Callable[[Exception], bool] = lambda error: False,
    may_pass: Callable[[Exception], bool] = lambda error: False,
    first_wait_seconds: float = FIRST_WAIT_SECONDS,
) -> Result:
    """Return what `action` returns, repeating the whole of it.

    Three times when its bytes were damaged on the way, or when the error `begins_anew`; when the
    network or the service failed, or the error `may_pass`, for `seconds` from the first time on, and three
    times at least: the client's own retries count from the beginning, so that what takes longer would get
    none. It waits for up to `first_wait_seconds` first, then for twice as long each time. Raises what
    `action` raised last, as the cause of a RetryError where the time is used up.
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
            elif not (_should_retry(error) or _is_unreachable(error) or may_pass(error)):
                raise
            else:
                failed_at.append(time.monotonic())
            if len(failed_at) > _LEAST_RETRIES and failed_at[-1] - failed_at[0] > seconds:
                # No kind of error of the network passes for one of this program.
                raise api.RetryError("the retries are used up", cause=error) from error  # type: ignore[no-untyped-call]
        # Not all that failed together ask again together.
        time.sleep(wait * random.uniform(0.5, 1.0))
        wait = min(2.0 * wait, _MOST_WAIT_SECONDS)


def _is_unreachable(error: Exception) -> bool:
    """Return whether the server that gives out credentials could not be asked: it may be up late."""
    cause = error.__cause__
    # An answer that is a refusal comes with the error as its second argument.
    return (
        isinstance(error, auth.RefreshError)
        and isinstance(cause, auth.TransportError)
        and len(cause.args) < 2
    )


def is_lost_session(error: Exception) -> bool:
    """Return whether the bucket no longer knows of an upload in several requests, which then begins anew."""
    # 410 is no ClientError to the library, as it has no class for it.
    return isinstance(error, api.GoogleAPICallError) and error.code in (404, 410)


def is_refusal(error: Exception) -> bool:
    """Return whether the bucket, or who gives out credentials, refused the request."""
    if isinstance(error, InvalidResponse):
        return error.response.status_code in (401, 403)
    refused = (api.Unauthorized, api.Forbidden, auth.RefreshError, auth.DefaultCredentialsError)
    return isinstance(error, refused)


def is_damage(error: Exception) -> bool:
    """Return whether bytes arrived that don't match their checksum, here or at the bucket."""
    # The messages of other errors, such as 404, quote the names of objects.
    is_checked = isinstance(error, (api.BadRequest, api.PreconditionFailed))
    return isinstance(error, DataCorruption) or (is_checked and any(each in str(error) for each in _DAMAGED))


def explanation(error: Exception, uri: str, done: str) -> TrainerError:
    """Return what to tell the user of a request that failed, its retries included."""
    if is_used_up := isinstance(error, api.RetryError):
        error = error.cause or error
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
    if is_damage(error):
        return TemporaryError(
            f"{uri} arrived damaged, which its checksum shows; try again. Received: {reason}"
        )
    if is_used_up and is_refusal(error):
        return TemporaryError(
            f"{uri} could not be {done}: the bucket refuses what it allowed before. Check the credentials "
            f"and rights, then run the same command again. Received: {reason}"
        )
    if is_used_up:  # whatever was tried again may succeed later, a lost upload session too
        return TemporaryError(f"{uri} could not be {done}; the retries are used up. Received: {reason}")
    return _final(error, uri, done, reason)


def _final(error: Exception, uri: str, done: str, reason: str) -> TrainerError:
    """Return what to tell the user of an error that was not tried again."""
    if isinstance(error, api.PreconditionFailed):
        return UsageError(
            f"{uri} can't be {done}: a rule of the bucket forbids it. Ask who keeps the bucket, or choose "
            f"another place. Received: {reason}"
        )
    if isinstance(error, api.NotFound):
        return UsageError(f"There is no such bucket or object as {uri}; check the name. Received: {reason}")
    if isinstance(error, api.Unauthorized):
        return UsageError(
            f"{uri} can't be {done} without credentials, or with these; `gcloud auth application-default "
            f"login` gets them, on a machine of the cloud its service account has them. Received: {reason}"
        )
    if isinstance(error, api.Forbidden):
        return UsageError(
            f"{uri} can't be {done} with these credentials; grant their account a role on the bucket such as "
            f"roles/storage.objectUser. Received: {reason}"
        )
    is_refused = isinstance(error, (auth.RefreshError, auth.DefaultCredentialsError))
    if is_refused and not (error.retryable or _is_unreachable(error)):  # type: ignore[attr-defined]
        return UsageError(
            f"The credentials for {uri} don't work; `gcloud auth application-default login` renews them. "
            f"Received: {reason}"
        )
    if isinstance(error, api.ClientError) and not isinstance(error, api.TooManyRequests):
        return UsageError(f"{uri} can't be {done}; check the name. Received: {reason}")
    return TemporaryError(f"{uri} could not be {done}; the retries are used up. Received: {reason}")
