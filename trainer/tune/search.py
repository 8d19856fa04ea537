"""Sampling, pruning and summary of a study with Optuna.

Optuna's study is in memory and rebuilt from the records.

The sampler proposes the settings of the next trial (TPE: Bergstra et al., 2011, "Algorithms for
Hyper-Parameter Optimization"). The pruner stops a running trial whose best metric so far is worse than
the median of the others (median stopping rule: Golovin et al., 2017, "Google Vizier").
"""

from __future__ import annotations

import hashlib
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from trainer import __version__
from trainer.errors import UsageError
from trainer.report.names import format_duration
from trainer.tune.parameters import Parameter, Value
from trainer.tune.study import Trial

if TYPE_CHECKING:
    import optuna

METRICS = {
    "accuracy": ("accuracy", "accuracy"),
    "loss": ("loss", "log_loss"),
    "mean_average_precision": ("mean_average_precision", "mean_average_precision"),
}
"""Option -> name in an epoch's history row, name in metrics.json."""
_TPE_ATTEMPTS, _ATTEMPTS = 8, 200
_STARTUP_TRIALS = 10
"""Number of random trials before TPE starts."""
_TRIALS_BEFORE_PRUNING = 4
"""Number of complete trials before pruning starts; a median of fewer is not reliable."""


def require_optuna() -> None:
    """Raise UsageError if Optuna is not installed."""
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise UsageError(
            "The search requires Optuna.",
            "Install it with pip install 'trainer[tune]'.",
            received=f"no module {error.name}",
        ) from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)


@dataclass(frozen=True)
class Search:
    """A search space and its optimization objective."""

    parameters: Sequence[Parameter]
    seed: int
    is_maximized: bool
    warmup_epochs: int
    """Number of epochs before a trial can be pruned."""
    is_pruning: bool = True

    def propose(self, number: int, trials: Sequence[Trial]) -> dict[str, Value] | None:
        """Return settings for trial `number` that none of `trials` uses; None if no new ones are found.

        Deterministic: the same number and trials give the same settings in any process.
        """
        tried = [dict(trial.settings) for trial in trials]
        size = 1.0
        for parameter in self.parameters:
            size *= parameter.size()
        for attempt in range(_ATTEMPTS if len(tried) < size else 0):
            study = self._study(number, attempt, trials)
            proposal = study.ask(self._distributions()).params
            settings = {
                parameter.key: proposal[parameter.key]
                if parameter.choices
                else parameter.number(proposal[parameter.key])
                for parameter in self.parameters
            }
            if settings not in tried:
                return settings
        return None

    def watch(self, trial: Trial, trials: Sequence[Trial]) -> Watch:
        """Return the pruner state of `trial`; `trials` are the others."""
        study = self._study(trial.number, 0, [other for other in trials if other.number != trial.number])
        study.enqueue_trial(dict(trial.settings))
        return Watch(study.ask(self._distributions()))

    def _study(self, number: int, attempt: int, trials: Sequence[Trial]) -> optuna.Study:
        import optuna

        seed = int.from_bytes(hashlib.sha256(f"{self.seed}/{number}/{attempt}".encode()).digest()[:4], "big")
        sampler: Any = optuna.samplers.RandomSampler(seed)
        if attempt < _TPE_ATTEMPTS:
            # With constant_liar, running trials count as bad ones, so that machines do not all try the same
            # settings.
            sampler = optuna.samplers.TPESampler(
                n_startup_trials=_STARTUP_TRIALS, seed=seed, constant_liar=True
            )
        pruner = optuna.pruners.MedianPruner(_TRIALS_BEFORE_PRUNING, self.warmup_epochs)
        direction: Literal["maximize", "minimize"] = "maximize" if self.is_maximized else "minimize"
        study = optuna.create_study(
            sampler=sampler,
            pruner=pruner if self.is_pruning else optuna.pruners.NopPruner(),
            direction=direction,
        )
        distributions = self._distributions()
        for trial in trials:
            study.add_trial(_frozen(trial, distributions))
        return study

    def _distributions(self) -> dict[str, Any]:
        return {parameter.key: _distribution(parameter) for parameter in self.parameters}


class Watch:
    """Pruner state of one trial during training."""

    def __init__(self, trial: optuna.Trial) -> None:
        self._trial = trial
        self.values: dict[int, float] = {}

    def note(self, epoch: int, value: float) -> None:
        """Report the metric of an epoch, counted from 1; only the first value of an epoch counts."""
        if epoch not in self.values:
            self.values[epoch] = value
            self._trial.report(value, epoch)

    def should_prune(self) -> bool:
        """Return whether the best value so far is worse than the median of the other trials at this epoch."""
        return self._trial.should_prune()


def best_trial(trials: Sequence[Trial], is_maximized: bool) -> Trial | None:
    """Return the best complete trial, the first one in a tie; None if no trial is complete."""
    ranked = ranking(trials, is_maximized)
    return ranked[0] if ranked and ranked[0].state == "complete" else None


def ranking(trials: Sequence[Trial], is_maximized: bool) -> list[Trial]:
    """Return the trials from best to worst: complete, then pruned, then running, then failed."""
    order = ("complete", "pruned", "running", "failed")
    sign = -1.0 if is_maximized else 1.0

    def key(trial: Trial) -> tuple[int, float, int]:
        return order.index(trial.state), sign * (trial.value or 0.0), trial.number

    return sorted(trials, key=key)


def _distribution(parameter: Parameter) -> Any:
    from optuna import distributions

    if parameter.choices:
        return distributions.CategoricalDistribution(parameter.choices)
    low, high, step = parameter.low, parameter.high, parameter.step
    if parameter.is_whole:
        return distributions.IntDistribution(int(low), int(high), log=parameter.is_log, step=int(step or 1))
    return distributions.FloatDistribution(low, high, log=parameter.is_log, step=step)


def _frozen(trial: Trial, distributions: Mapping[str, Any]) -> Any:
    """Convert a trial to an Optuna trial; a failed one counts as the worst of the pruned ones."""
    import optuna
    from optuna.trial import TrialState

    state = {"complete": TrialState.COMPLETE, "running": TrialState.RUNNING}.get(
        trial.state, TrialState.PRUNED
    )
    return optuna.trial.create_trial(
        state=state,
        value=trial.value if state == TrialState.COMPLETE else None,
        params=dict(trial.settings),
        distributions=dict(distributions),
        intermediate_values=dict(trial.values),
    )


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
