"""Private names of other libraries that this package depends on.

Every use goes through a function of this module, which checks first that the installed version still has the
name: without the check, a new release could change results without an error. `tests/test_compat.py` fails for
a private name in any other module.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, cast

from trainer.errors import TrainerError

if TYPE_CHECKING:
    import click


def apply_without_all_reduce(optimizer: Any) -> None:
    """Let `optimizer.apply` use gradients as they are, because they are already summed over all replicas.

    Keras would sum them a second time, and there is no public option against it.
    """
    private(optimizer, "_all_reduce_sum_gradients", "keras")
    optimizer._all_reduce_sum_gradients = list


def index_of_variable(optimizer: Any, variable: Any) -> int:
    """Return the position of `variable` among the variables that a Keras optimizer was built for."""
    return cast(int, private(optimizer, "_get_variable_index", "keras")(variable))


def abort_collectives(code: int, message: str) -> None:
    """Abort the pending collectives of this process with a TensorFlow error code and a message."""
    from tensorflow.python.eager import context

    private(context.context(), "abort_collective_ops", "tensorflow")(code, message)


def http_session(client: Any) -> Any:
    """Return the requests session that a Cloud Storage client uses for all requests."""
    return private(client, "_http", "google-cloud-storage")


def download_url(blob: Any, client: Any, **conditions: int) -> str:
    """Return the URL from which the client library downloads `blob` under `conditions`."""
    return cast(str, private(blob, "_get_download_url", "google-cloud-storage")(client, **conditions))


def uploaded_name(blob: Any) -> str | None:
    """Return the name that Cloud Storage reported for `blob` after an upload; None if it reported none."""
    return cast("str | None", private(blob, "_properties", "google-cloud-storage").get("name"))


def is_retryable(error: Exception) -> bool:
    """Return whether the Cloud Storage client would retry a request after `error`."""
    from google.cloud.storage import retry

    return bool(private(retry, "_should_retry", "google-cloud-storage")(error))


def command_words(context: click.Context) -> list[str]:
    """Return the words of the command line that click has not parsed: the subcommand and its arguments."""
    return [*private(context, "_protected_args", "click"), *context.args]


def private(owner: Any, name: str, package: str) -> Any:
    """Return the attribute `name` of `owner`, an object of `package`. Raises TrainerError if it is gone."""
    try:
        inspect.getattr_static(owner, name)
    except AttributeError:
        raise TrainerError(
            f"{package} {_version_of(package)} is not supported: it has no {name}, which this package uses.",
            "Install the versions in the requirements-*.lock files.",
            received=type(owner).__name__,
        ) from None
    return getattr(owner, name)


def _version_of(package: str) -> str:
    from importlib import metadata  # slow import, needed only here

    for name in (package, f"{package}-cpu"):  # tensorflow may be installed as tensorflow-cpu
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return "(unknown version)"
