"""Base class and value ranges for all parts of a spec."""

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
    """Immutable, strict base class; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class SettingError(ValueError):
    """Settings that are valid one by one, but not together; a validator raises it.

    `problem`, `remedy` and `received` are those of the resulting UsageError.
    """

    def __init__(self, problem: str, remedy: str, received: object) -> None:
        super().__init__(problem, remedy, received)
        self.problem, self.remedy, self.received = problem, remedy, received


_Model = TypeVar("_Model", bound=Checked)
OPEN = {"is_open": True}
"""Validation context while settings are still to be chosen: checks across settings are skipped."""


def cross_check(method: Callable[[_Model], _Model]) -> Any:
    """Make `method` a validator across several settings, which is skipped in the context `OPEN`."""

    def checked(self: _Model, info: ValidationInfo) -> _Model:
        return self if info.context == OPEN else method(self)

    return model_validator(mode="after")(checked)
