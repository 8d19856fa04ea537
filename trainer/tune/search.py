"""Sampling and pruning with Optuna, in an in-memory study that is rebuilt from the records.

The sampler proposes the settings of the next trial (TPE: Bergstra et al., 2011, "Algorithms for
Hyper-Parameter Optimization"). The pruner stops a running trial whose best metric so far is worse than
the median of the others (median stopping rule: Golovin et al., 2017, "Google Vizier").
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from trainer.errors import UsageError
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
