"""Sampling and pruning by Optuna, with a study in memory that is rebuilt from the records.

In: parameters, a seed and the trials so far. Out: the settings of the next trial (TPE: Bergstra et al., 2011,
"Algorithms for Hyper-Parameter Optimization"), and whether a trial at work is worth its next epoch (median
rule: Golovin et al., 2017, "Google Vizier").
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from trainer.exits import UsageError
from trainer.tune.parameters import Parameter, Value
from trainer.tune.study import Trial

if TYPE_CHECKING:
    import optuna

METRICS = {
    "accuracy": ("accuracy", "accuracy"),
    "loss": ("loss", "log_loss"),
    "mean_average_precision": ("mean_average_precision", "mean_average_precision"),
}
"""By the option: the name in an epoch's row, and that in metrics.json."""
_TPE_ATTEMPTS, _ATTEMPTS = 8, 200
_STARTUP_TRIALS = 10
"""Random ones, before TPE has enough to learn from."""
_TRIALS_BEFORE_PRUNING = 4
"""Complete ones; a median of fewer says little."""


def require_optuna() -> None:
    """Raise UsageError if Optuna is not installed."""
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise UsageError(
            "Searching needs Optuna; install it with pip install 'trainer[tune]'. "
            f"Received: no module {error.name}"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)


@dataclass(frozen=True)
class Search:
    """A search space and what is optimized in it."""

    parameters: Sequence[Parameter]
    seed: int
    is_maximized: bool
    warmup_epochs: int
    """No trial is pruned before it has done so many."""
    is_pruning: bool = True

    def propose(self, number: int, trials: Sequence[Trial]) -> dict[str, Value] | None:
        """Return the settings of trial `number`, other ones than those of `trials`; None if all were tried.

        The same number and trials give the same settings, in whatever process.
        """
        tried = [dict(trial.settings) for trial in trials]
        size = 1.0
        for each in self.parameters:
            size *= each.size()
        for attempt in range(_ATTEMPTS if len(tried) < size else 0):
            study = self._study(number, attempt, trials)
            asked = study.ask({each.key: _distribution(each) for each in self.parameters}).params
            settings = {
                each.key: asked[each.key] if each.choices else each.number(asked[each.key])
                for each in self.parameters
            }
            if settings not in tried:
                return settings
        return None

    def watch(self, trial: Trial, trials: Sequence[Trial]) -> Watch:
        """Return what decides, epoch by epoch, whether `trial` goes on; `trials` are the others."""
        study = self._study(trial.number, 0, [each for each in trials if each.number != trial.number])
        study.enqueue_trial(dict(trial.settings))
        return Watch(study.ask({each.key: _distribution(each) for each in self.parameters}))

    def _study(self, number: int, attempt: int, trials: Sequence[Trial]) -> optuna.Study:
        import optuna

        seed = int.from_bytes(hashlib.sha256(f"{self.seed}/{number}/{attempt}".encode()).digest()[:4], "big")
        sampler: Any = optuna.samplers.RandomSampler(seed)
        if attempt < _TPE_ATTEMPTS:
            # Trials at work on other machines count as bad ones, so that not all try the same.
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
        distributions = {each.key: _distribution(each) for each in self.parameters}
        for trial in trials:
            study.add_trial(_frozen(trial, distributions))
        return study


class Watch:
    """One trial while it is trained."""

    def __init__(self, trial: optuna.Trial) -> None:
        self._trial = trial
        self.values: dict[int, float] = {}

    def note(self, epoch: int, value: float) -> None:
        """Note the metric of an epoch, from 1; the first value of each epoch counts."""
        if epoch not in self.values:
            self.values[epoch] = value
            self._trial.report(value, epoch)

    def should_prune(self) -> bool:
        """Return whether its best value so far is worse than the median of the others at this epoch."""
        return self._trial.should_prune()


def best_trial(trials: Sequence[Trial], is_maximized: bool) -> Trial | None:
    """Return the best complete trial, the first of equals; None if none is complete."""
    ranked = ranking(trials, is_maximized)
    return ranked[0] if ranked and ranked[0].state == "complete" else None


def ranking(trials: Sequence[Trial], is_maximized: bool) -> list[Trial]:
    """Return the trials from best to worst: complete ones first, then pruned ones, then failed ones."""
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
    """Return the trial as Optuna knows it; one that failed counts as the worst of the pruned ones."""
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
