"""Validation of the responses of Kubernetes, Google Cloud and Docker, where they arrive.

A response that is not JSON, or lacks a field that this program reads, raises `ResponseError`. All other code
can rely on the fields and their types, so a KeyError or TypeError in it is a bug, not a temporary failure.
"""

from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ValidationError
from pydantic.alias_generators import to_camel

from trainer.errors import TemporaryError

_SHOWN = 200


class ResponseError(TemporaryError):
    """A response of a service that cannot be read."""

    def __init__(self, service: str, reason: str) -> None:
        super().__init__(
            f"The response of {service} cannot be read.",
            "Check whether a proxy answers in place of the service, and whether the service has a supported "
            "version.",
            reason[:_SHOWN],
        )


class Response(BaseModel, alias_generator=to_camel):
    """Base class of the schemas of responses: the fields that this program reads. Others are ignored."""


def parse_time(text: str) -> datetime:
    """Parse an RFC 3339 time in UTC; fractions of a second are dropped. Raises ValueError."""
    return datetime.strptime(text[:19], "%Y-%m-%dT%H:%M:%S").replace(tzinfo=timezone.utc)


def _require_time(text: str) -> str:
    parse_time(text)
    return text


Time = Annotated[str, AfterValidator(_require_time)]
"""An RFC 3339 time in UTC."""


def parse_json(text: str, service: str) -> Any:
    """Parse JSON. Raises ResponseError if `text` is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ResponseError(service, f"{error} in {text[:80]!r}") from None


def read_response(schema: type[Response], value: Any, service: str) -> dict[str, Any]:
    """Return `value`, which is parsed JSON, if it has the fields of `schema`. Raises ResponseError."""
    try:
        schema.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(map(str, first["loc"]))
        raise ResponseError(service, f"{path}: {first['msg']}" if path else first["msg"]) from None
    result: dict[str, Any] = value
    return result
