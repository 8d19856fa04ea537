"""Comparison as text for a terminal of 80 columns, and as plain values for JSON.

The first run is the one that the others are compared with.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from trainer.compare.pair import Comparison
from trainer.compare.runs import Run, all_differences
from trainer.errors import UsageError
from trainer.evaluate.metrics import wilson_interval
from trainer.evaluate.significance import mean_interval
from trainer.report.names import columns, cut, format_duration, padded, shorten
from trainer.spec import parse_spec, spec_digest
from trainer.spec.text import dump_mapping

_WIDTH = 79
_LABEL, _CELL = 20, 28
_MAX_COLUMNS = 2
_MAX_ROWS = 12
"""Maximum number of differences of one kind; --json and the page have all."""
_UNKNOWN = "-"


def accuracy_text(run: Run) -> str:
    """Return the accuracy with its Wilson interval."""
    low, high = wilson_interval(run.correct, run.count)
    return f"{run.accuracy:.3f} ({low:.3f} to {high:.3f})"


def _metric(name: str) -> Callable[[Run], str]:
    def text(run: Run) -> str:
        value = run.metrics.get(f"{run.split}/{name}")
        return _UNKNOWN if value is None else f"{value:.3f}"

    return text


def _train(run: Run) -> str:
    value = run.metrics.get("train/accuracy")
    return _UNKNOWN if value is None else f"{value:.3f} (gap {value - run.accuracy:+.3f})"


def _tensorflow(run: Run) -> str:
    packages = run.environment.get("packages", {})
    return next((packages[name] for name in packages if name.startswith("tensorflow")), _UNKNOWN)


def _time(run: Run) -> str:
    return format_duration(run.seconds) if run.seconds else _UNKNOWN


def _rate(run: Run) -> str:
    return f"{run.images_per_second:,.0f}" if run.images_per_second else _UNKNOWN


_VERSION_ROWS: tuple[tuple[str, Callable[[Run], str]], ...] = (
    ("devices", lambda run: str(run.environment.get("devices", _UNKNOWN))),
    ("TensorFlow", _tensorflow),
    ("trainer", lambda run: run.environment.get("trainer_version") or _UNKNOWN),
)
ROWS: tuple[tuple[str, Callable[[Run], str]], ...] = (
    ("accuracy", accuracy_text),
    ("images", lambda run: f"{run.correct:,} of {run.count:,} ({run.split})"),
    ("train accuracy", _train),
    ("mean avg. precision", _metric("mean_average_precision")),
    ("macro F1", _metric("macro_f1")),
    ("micro F1", _metric("micro_f1")),
    ("Hamming loss", _metric("hamming_loss")),
    ("log loss", _metric("log_loss")),
    ("calibration error", _metric("calibration_error")),
    ("time", _time),
    ("images/s", _rate),
    ("cost of training", lambda run: f"{run.cost:,.2f} USD" if run.cost is not None else _UNKNOWN),
    *_VERSION_ROWS,
)


def table(runs: Sequence[Run]) -> list[str]:
    """Return the lines of a table: a column per run, or a row per run for more than two."""
    if len(runs) > _MAX_COLUMNS:
        return _long_table(runs)
    lines = [_line("", [run.name for run in runs])]
    for label, text in ROWS:
        cells = [text(run) for run in runs]
        if any(cell != _UNKNOWN for cell in cells):
            lines.append(_line(label, cells))
    return lines


def spread(runs: Sequence[Run]) -> str:
    """Return mean, standard deviation and 95% interval of the mean of the accuracies of several runs."""
    mean, deviation, half = _spread(runs)
    low, high = max(0.0, mean - half), min(1.0, mean + half)
    return (
        f"mean {mean:.3f}, standard deviation {deviation:.3f}, 95% interval of the mean {low:.3f} to "
        f"{high:.3f} ({len(runs)} runs)"
    )


def are_repeated(runs: Sequence[Run]) -> bool:
    """Return whether the runs differ only in their seeds; otherwise their mean is meaningless."""
    try:
        return all(run.spec for run in runs) and len({_settings_key(run) for run in runs}) == 1
    except UsageError:
        return False  # the spec is of another version


def _settings_key(run: Run) -> tuple[str, str, str]:
    """Return what determines a result except the seed; equal for repeated runs. Raises UsageError."""
    spec = parse_spec(dump_mapping(run.spec), run.uri)
    data = spec.data.model_copy(update={"source": ""})  # the digest identifies the data
    digest = spec_digest(spec.model_copy(update={"seed": 0, "data": data}))
    return digest, str(run.dataset.get("digest")), str(run.environment.get("started_from") or "")


def _spread(runs: Sequence[Run]) -> tuple[float, float, float]:
    return mean_interval([run.accuracy for run in runs])


def lines_of(comparison: Comparison) -> list[str]:
    """Return the lines that describe a comparison."""
    lines = textwrap.wrap(comparison.verdict, _WIDTH, break_on_hyphens=False)
    for name, test in comparison.others.items():
        mark = "" if test.is_chance else "  *"
        lines.append(
            f"  {name:<18}{test.difference:+.4f} (95% interval {test.low:+.4f} to {test.high:+.4f}){mark}"
        )
    if any(not test.is_chance for test in comparison.others.values()):
        lines.append("  * significant individually, not adjusted for several tests")
    for heading, rows in all_differences(comparison.first, comparison.second):
        lines.append(f"different {heading}")
        lines += [_line(name, [before, after], "  ") for name, before, after in rows[:_MAX_ROWS]]
        if len(rows) > _MAX_ROWS:
            lines.append(f"  and {len(rows) - _MAX_ROWS} more; --json and --html show all")
    return lines


def as_values(
    runs: Sequence[Run], comparisons: Sequence[Comparison], is_spread: bool = False
) -> dict[str, Any]:
    """Return runs and comparisons as plain values.

    The spread is included if `is_spread` is set, or if only the seeds differ.
    """
    return {
        "runs": [_values(run) for run in runs],
        "comparisons": [
            {
                "first": comparison.first.name,
                "second": comparison.second.name,
                "verdict": comparison.verdict,
                "is_paired": not comparison.why_unpaired,
                "is_chance": comparison.is_chance,
                "is_contested": comparison.is_contested,
                "comparisons_at_once": comparison.among,
                "adjusted_p_value": comparison.adjusted_p,
                "only_first_right": None if comparison.why_unpaired else comparison.only_first,
                "only_second_right": None if comparison.why_unpaired else comparison.only_second,
                "only_one_right": []
                if names is None
                else [names[index] for index in comparison.disagreements],
                **({} if comparison.measure == "accuracy" else {"measure": comparison.measure}),
                "accuracy": asdict(comparison.accuracy),
                "others": {name: asdict(test) for name, test in comparison.others.items()},
                "differences": {
                    heading: [list(row) for row in rows]
                    for heading, rows in all_differences(comparison.first, comparison.second)
                },
            }
            for comparison in comparisons
            for names in [comparison.first.predictions.names if comparison.first.predictions else None]
        ],
        "spread": dict(zip(("mean", "standard_deviation", "half_interval"), _spread(runs), strict=True))
        if is_spread or are_repeated(runs)
        else None,
    }


def _values(run: Run) -> dict[str, Any]:
    low, high = wilson_interval(run.correct, run.count)
    return {
        "name": run.name,
        "uri": run.uri,
        "split": run.split,
        "correct": run.correct,
        "count": run.count,
        "accuracy": run.accuracy,
        "accuracy_low": low,
        "accuracy_high": high,
        "seconds": run.seconds,
        "images_per_second": run.images_per_second,
        "cost_usd": run.cost,
        "metrics": dict(run.metrics),
        "devices": run.environment.get("devices"),
        "packages": run.environment.get("packages", {}),
        "trainer_version": run.environment.get("trainer_version"),
    }


def _long_table(runs: Sequence[Run]) -> list[str]:
    """Return a line per run, and lines with devices and versions."""
    has_cost = any(run.cost is not None for run in runs)
    head = f"{'':<{_CELL}}{'accuracy':<24}{'time':<12} {'images/s':<8} {'USD' if has_cost else ''}"
    lines = [head.rstrip(), *(_short_row(run) for run in runs)]
    for label, text in _VERSION_ROWS:
        values = list(dict.fromkeys(text(run) for run in runs))
        if values != [_UNKNOWN]:
            lines.append(f"{label:<{_CELL}}{shorten(' | '.join(values), _WIDTH - _CELL)}")
    return lines


def _short_row(run: Run) -> str:
    cost = "" if run.cost is None else f"{run.cost:.2f}" if run.cost < 100 else f"{run.cost:.0f}"
    name = padded(shorten(run.name, _CELL - 2), _CELL)
    return f"{name}{accuracy_text(run):<24}{_time(run):<12} {_rate(run):<8} {cost}".rstrip()


def _line(label: str, cells: Sequence[str], indent: str = "") -> str:
    texts = "  ".join(padded(shorten(cell, _CELL), _CELL) for cell in cells)
    head = f"{indent}{_shorten_left(label, _LABEL - 1 - len(indent))}" if label else ""
    return f"{padded(head, _LABEL)}{texts}".rstrip()


def _shorten_left(label: str, limit: int) -> str:
    """Return a label; if it is too long, its end, which is the most specific part of a key."""
    return label if columns(label) <= limit else f"…{cut(label[::-1], limit - 1)[::-1]}"
