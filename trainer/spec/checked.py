"""What every part of a spec is made of.

In: nothing. Out: the base of all parts, and the ranges that numbers have.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, model_validator

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
Blocks = Annotated[int, Field(ge=1, le=1_000)]
Filters = Annotated[int, Field(ge=1, le=65_536)]


class Checked(BaseModel):
    """Frozen, strict, and closed: an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


_Model = TypeVar("_Model", bound=Checked)
OPEN = {"is_open": True}
"""The context of a validation after which more settings are chosen: they are not yet checked together."""


def cross_check(method: Callable[[_Model], _Model]) -> Any:
    """Make `method` a check of several settings together; not done while some are still to be chosen."""

    def checked(self: _Model, info: ValidationInfo) -> _Model:
        return self if info.context == OPEN else method(self)

    return model_validator(mode="after")(checked)
