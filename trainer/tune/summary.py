"""Summary of a study: plain values for `summary.json`, text lines for `summary.txt` and the terminal.

It lists the trials from best to worst, the metric and the images it was measured on, and the best settings.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from trainer import __version__
from trainer.report.names import format_duration
from trainer.tune.search import Search, best_trial, ranking
from trainer.tune.study import Trial

_WIDTH = 79
_NOTE = (
    "No test images were read. The metric of the best trial is optimistic, because the same images selected "
    "it: evaluate the final model on other images."
)


def as_values(
    search: Search, metric: str, uri: str, trial_count: int, trials: Sequence[Trial]
) -> dict[str, Any]:
    """Return the summary as plain values.

    {"study", "trainer_version", "metric", "direction", "seed", "trials_wanted", "parameters": {key: text},
    "trials": [{"name", "state", "value", "epochs", "seconds", "why", "settings"}, ...] from best to worst,
    "best": name or None, "note"}
    """
    best = best_trial(trials, search.is_maximized)
    return {
        "study": uri,
        "trainer_version": __version__,
        "metric": f"validation {metric}",
        "direction": "maximize" if search.is_maximized else "minimize",
        "seed": search.seed,
        "trials_wanted": trial_count,
        "parameters": {parameter.key: parameter.text for parameter in search.parameters},
        "trials": [
            {
                "name": trial.run_name,
                "state": trial.state,
                "value": trial.value,
                "epochs": max(trial.values, default=0),
                "seconds": trial.seconds,
                "why": trial.why,
                "settings": dict(trial.settings),
            }
            for trial in ranking(trials, search.is_maximized)
        ],
        "best": best.run_name if best else None,
        "note": _NOTE,
    }


def lines_of(summary: Mapping[str, Any]) -> list[str]:
    """Return the lines of `summary.txt`."""
    trials = summary["trials"]
    done = sum(trial["state"] != "running" for trial in trials)
    images = f" of {summary['held_out_images']:,} held-out images" if "held_out_images" in summary else ""
    lines = [f"{done} of {summary['trials_wanted']} trials finished; {summary['metric']}{images}", ""]
    lines += _table([_row(trial) for trial in trials])
    if summary["best"] is None:
        return lines
    lines += ["", *textwrap.wrap(summary["note"], _WIDTH)]
    if summary["comparison"]:
        text = f"The best trial compared with {_first(trials)}: {summary['comparison']}"
        lines += ["", *textwrap.wrap(text, _WIDTH, break_on_hyphens=False)]
    return [*lines, "", f"best       {summary['best']}", f"try        {summary['command']}"]


def _first(trials: Sequence[Mapping[str, Any]]) -> str:
    """Return the name of the first complete trial, which the best trial is compared with."""
    return str(min(trial["name"] for trial in trials if trial["state"] == "complete"))


def _row(trial: Mapping[str, Any]) -> list[str]:
    value = "-" if trial["value"] is None else f"{trial['value']:.4f}"
    seconds = format_duration(trial["seconds"]) if trial["seconds"] else "-"
    settings = " ".join(f"{key}={value}" for key, value in trial["settings"].items())
    return [trial["name"], trial["why"] or trial["state"], value, str(trial["epochs"]), seconds, settings]


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    head = ["trial", "state", "value", "epochs", "time", "settings"]
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head) - 1)]
    return [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]).rstrip()
        for row in [head, *rows]
    ]
