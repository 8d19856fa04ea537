"""Search space: parses `--parameter optimizer.learning_rate=1e-4..1e-2:log` into `Parameter`s.

Every parameter is validated against the schema of the spec that it changes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.errors import UsageError
from trainer.spec import RunSpec, dump_spec, load_spec
from trainer.spec.load import flatten
from trainer.spec.networks import DEFAULT_WEIGHTS, NO_WEIGHTS
from trainer.spec.problems import require_known_key
from trainer.spec.text import parse_value, shown_repr

Value = float | int | str
"""Value of a parameter in a trial: a number, or the text of a choice."""

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_RANGE = re.compile(rf"({_NUMBER})\.\.({_NUMBER})(?::(.*))?")
_FORMS = "KEY=LOW..HIGH, KEY=LOW..HIGH:log, KEY=LOW..HIGH:STEP or KEY=A|B|C"
_GRID = 1e-6
"""Tolerance for the end of a range relative to the grid, in steps: 0.1 + 0.2 is not 0.3."""
_ON_GRID = 1e-9
"""Tolerance for a value relative to the grid, in steps; Optuna uses 1e-8."""
_DIGITS = 4
_GOLDEN = 0.381966
_FIXED_KEYS = {
    "seed": "the best seed is best by chance; `trainer repeat` measures the effect of the seed",
    "recipe": "a study has one recipe",
    "output": "all trials are in the folder of the study",
    "run_name": "all trials are in the folder of the study",
    "data.source": "all trials need the same images",
    "data.checksum": "all trials need the same images",
    "data.layout": "all trials need the same images",
    "data.validation_fraction": "all trials need the same held-out images",
    "data.held_out": "all trials need the same held-out images",
    "data.max_rejected": "all trials need the same images",
    "data.max_image_pixels": "all trials need the same images",
    "train.start_from": "all trials begin with the same weights",
}


@dataclass(frozen=True)
class Parameter:
    """One setting that differs between trials: a numeric range or a list of choices."""

    key: str
    text: str
    """Text after `KEY=`."""
    choices: tuple[str, ...] = ()
    """Choices as YAML texts; empty for a range."""
    low: float = 0.0
    high: float = 0.0
    step: float | None = None
    is_log: bool = False
    is_whole: bool = False
    """Whether the setting accepts integers only."""

    @property
    def extremes(self) -> list[Value]:
        """Values to validate against the schema: both ends of a range, or all choices."""
        return list(self.choices) or [self.number(self.low), self.number(self.high)]

    def number(self, value: float) -> float | int:
        """Round a number of the range to the value that a trial uses.

        The result is an integer, or a multiple of the step, or has four significant digits.
        """
        if self.is_whole:
            return round(value)
        if self.step is not None:
            return float(min(max(_on_grid(value, self.low, self.step), self.low), self.high))
        return float(min(max(float(f"{value:.{_DIGITS}g}"), self.low), self.high))

    def value_of(self, setting: Any) -> Value | None:
        """Return the value of this parameter that equals `setting` of a spec, or None."""
        if self.choices:
            return next((choice for choice in self.choices if _is_same(parse_value(choice), setting)), None)
        if isinstance(setting, bool) or not isinstance(setting, int | float):
            return None
        steps = (setting - self.low) / self.step if self.step else 0.0
        is_inside = self.low <= setting <= self.high and abs(steps - round(steps)) < _ON_GRID
        return setting if is_inside else None

    def size(self) -> float:
        """Return the number of different values; infinite for a continuous range."""
        if self.choices:
            return len(self.choices)
        step = self.step or (1 if self.is_whole else 0)
        return int((self.high - self.low) / step + _GRID) + 1 if step else float("inf")


def parse_parameters(texts: Sequence[str], base: RunSpec) -> list[Parameter]:
    """Parse `texts` into the parameters of a study with the spec `base`. Raises UsageError."""
    if not texts:
        raise UsageError("A search needs at least one --parameter.", f"Write it as {_FORMS}.", "none")
    parameters = [_parse(text, base) for text in texts]
    keys = [parameter.key for parameter in parameters]
    if repeated := next((key for key in keys if keys.count(key) > 1), None):
        raise UsageError(
            "A --parameter is set more than once.",
            "Set it once.",
            received=f"{repeated} {keys.count(repeated)} times",
        )
    for one, other in ((one, other) for one in keys for other in keys if other.startswith(f"{one}.")):
        raise UsageError(
            "One parameter contains the other.", "Search only one of them.", f"{one} and {other}"
        )
    for parameter in parameters:
        for value in parameter.extremes:
            _require_possible(base, parameter, value, parameters)
    return parameters


def settings_of(settings: Mapping[str, Value]) -> list[str]:
    """Return `KEY=VALUE` texts in the format of `--set`."""
    return [f"{key}={value}" for key, value in settings.items()]


def base_settings(parameters: Sequence[Parameter], base: RunSpec) -> dict[str, Value] | None:
    """Return the values that the spec itself sets; None if one is not a value of its parameter."""
    values = flatten(base.model_dump(mode="json"))
    settings = {parameter.key: parameter.value_of(values.get(parameter.key)) for parameter in parameters}
    present = {key: value for key, value in settings.items() if value is not None}
    return present if len(present) == len(settings) else None


def with_settings(base: RunSpec, settings: Mapping[str, Value], **overrides: Any) -> RunSpec:
    """Return `base` with the settings of a trial. Raises UsageError like `--set`."""
    return load_spec(text=dump_spec(base), settings=settings_of(settings), overrides=overrides)


def _parse(text: str, base: RunSpec) -> Parameter:
    key, _, values = (part.strip() for part in text.partition("="))
    if not key or not values:
        raise UsageError("The parameter has no key or no values.", f"Write it as {_FORMS}.", shown_repr(text))
    require_known_key(key, values)
    if key in _FIXED_KEYS or key.startswith("publish."):
        reason = _FIXED_KEYS.get(key, "it does not change what is trained")
        raise UsageError(
            f"{key} cannot be searched: {reason}.", "Set it once for the whole study.", shown_repr(text)
        )
    if (numbers := _RANGE.fullmatch(values)) is not None:
        return _range(key, values, numbers, base)
    choices = tuple(choice.strip() for choice in values.split("|"))
    if len(choices) < 2 or not all(choices) or len(set(choices)) < len(choices):
        raise UsageError(
            "The parameter is neither a range nor at least two different choices.",
            f"Write it as {_FORMS}.",
            received=shown_repr(text),
        )
    for choice in choices:
        _require_no_weights_file(key, parse_value(choice), text)
    return Parameter(key, values, choices)


def _require_no_weights_file(key: str, value: Any, text: str) -> None:
    """Raise UsageError for a choice that names a weights file, whose content would not be checked."""
    weights = value.get("weights") if key == "model" and isinstance(value, dict) else value
    if key not in ("model", "model.weights") or not isinstance(weights, str):
        return
    if weights not in (DEFAULT_WEIGHTS, NO_WEIGHTS):
        raise UsageError(
            "A weights file cannot be searched.",
            "Set it for the whole study with --set model.weights=FILE, and run one study per file.",
            received=shown_repr(text),
        )


def _range(key: str, text: str, numbers: re.Match[str], base: RunSpec) -> Parameter:
    low, high = (parse_value(_with_digits(numbers[number])) for number in (1, 2))
    suffix, received = numbers[3], f"{key}={text}"
    if not low < high < float("inf"):
        raise UsageError("The range is empty.", "The first number must be smaller than the second.", received)
    is_log = suffix == "log"
    if is_log and low <= 0:
        raise UsageError(
            "A logarithmic range must start above 0.", "Choose a positive lower bound.", received
        )
    is_whole = isinstance(low, int) and isinstance(high, int) and not _takes_fractions(key, low, high, base)
    step = None
    if suffix is not None and not is_log:
        step = float(suffix) if re.fullmatch(_NUMBER, suffix) else 0.0
        if not 0 < step <= high - low or (is_whole and step != int(step)):
            raise UsageError(
                "The text after the range is neither log nor a valid step.",
                "Write :log, or "
                + ("a positive integer step" if is_whole else "a positive step")
                + " that is not larger than the range.",
                received,
            )
        # The last value on the grid, without rounding errors (3 x 0.1 is 0.3).
        high = _on_grid(low + int((high - low) / step + _GRID) * step, low, step)
    return Parameter(key, text, (), low, high, step, is_log, is_whole)


def _on_grid(value: float, low: float, step: float) -> float:
    """Round a value of the grid to twelve significant digits, unless that moves it off the grid."""
    rounded = float(f"{value:.12g}")
    steps = (rounded - low) / step
    return rounded if abs(steps - round(steps)) < _ON_GRID else value


def _with_digits(text: str) -> str:
    """Return a number in YAML syntax, which requires a digit before the decimal point."""
    return re.sub(r"^([-+]?)\.", r"\g<1>0.", text)


def _takes_fractions(key: str, low: int, high: int, base: RunSpec) -> bool:
    """Return whether the setting accepts non-integer numbers."""
    inner = low + _GOLDEN * (high - low)
    try:
        with_settings(base, {key: inner if inner % 1 else inner + _GOLDEN})
    except UsageError:
        return False
    return True


def _require_possible(base: RunSpec, parameter: Parameter, value: Value, others: Sequence[Parameter]) -> None:
    """Raise UsageError unless the spec accepts `value`, alone or with a value of one other parameter."""
    try:
        with_settings(base, {parameter.key: value})
        return
    except UsageError as error:
        first_error = error
    for other in others:
        for other_value in other.extremes if other is not parameter else ():
            try:
                with_settings(base, {parameter.key: value, other.key: other_value})
                return
            except UsageError:
                continue
    raise first_error


def _is_same(choice: Any, setting: Any) -> bool:
    return choice == setting and isinstance(choice, bool) == isinstance(setting, bool)
