"""Trials of `trainer tune`: training processes, pruning, and the summary of the study.

Each trial has a record and a run.
"""

from __future__ import annotations

import json
import shlex
import subprocess
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from trainer.cli.compare import read_runs
from trainer.cli.repeat import end_of, error_of_run, require_alike, start_training
from trainer.errors import AcceleratorError, DataError, DivergedError, OutOfMemoryError, UsageError
from trainer.sanitize import printable, shown_address
from trainer.tune.parameters import base_settings, settings_of, with_settings
from trainer.tune.search import METRICS, Watch, as_values, best_trial, lines_of
from trainer.tune.study import SUMMARY, TABLE, Records, Trial

if TYPE_CHECKING:
    from trainer.cli.tune import TrialJob
    from trainer.compare.runs import Run
    from trainer.spec import RunSpec

_LAST_LINES = 30
_ERROR = "Error: "
_FAILURES = {
    DivergedError.exit_code: "diverged",
    OutOfMemoryError.exit_code: "out of memory",
    UsageError.exit_code: "the settings do not fit the data",
}
"""Exit codes that the settings of one trial cause; the study continues."""
_UNUSABLE = (DataError.exit_code, AcceleratorError.exit_code)
"""Exit codes whose cause all trials share."""


def train_trial(job: TrialJob, number: int) -> bool:
    """Train trial `number` unless it has a result; return False if all combinations were tried.

    Raises StoppedError, and the error of the training if other trials would fail in the same way.
    """
    records = Records(job.store)
    trial = records.read(number)
    others = [other for other in records.all() if other.number != number]
    if trial is None:
        settings = base_settings(job.search.parameters, job.base) if number == 0 else None
        settings = settings or job.search.propose(number, others)
        if settings is None:
            click.echo("All combinations of the parameters were tried.", err=True)
            return False
        trial = Trial(number, settings)
        records.write(trial)
    if trial.is_done:
        return True
    click.echo(printable(f"{trial.run_name}  {' '.join(settings_of(trial.settings))}"), err=True)
    records.write(done := _trained(job, trial, others, records))
    click.echo(printable(f"{trial.run_name}  {_outcome(done, job.metric)}"), err=True)
    return True


def _trained(job: TrialJob, trial: Trial, others: list[Trial], records: Records) -> Trial:
    try:
        spec = with_settings(job.base, trial.settings, run_name=trial.run_name, output=job.store.uri)
    except UsageError as error:
        return replace(trial, state="failed", why=str(error))
    watch = job.search.watch(trial, others)
    for epoch, row in enumerate(_rows(job, trial), 1):
        _report_metric(watch, epoch, row, job.metric)
    training = _Training(job, trial, spec, watch, records)
    code = training.run()
    if training.pruned is not None:
        return training.pruned
    if _is_failure(code, others) and not training.was_killed:
        return replace(trial, state="failed", why=_FAILURES[code])
    if code:
        training.show_lines()
        if code == UsageError.exit_code or (code in _UNUSABLE and not _has_begun(job, trial)):
            records.forget(trial, is_alone=job.share[1] == 1)
        raise error_of_run(trial.run_name, code)
    return _result(job, trial, others)


def _is_failure(code: int, others: list[Trial]) -> bool:
    """Return whether a trial failed because of its own settings, so that the search continues."""
    if code == UsageError.exit_code:  # the spec itself is the cause if no trial has completed
        return any(other.state == "complete" for other in others)
    return code in _FAILURES


class _Training:
    """Training process of one trial."""

    def __init__(self, job: TrialJob, trial: Trial, spec: RunSpec, watch: Watch, records: Records) -> None:
        self.job, self.trial, self.spec, self.watch, self.records = job, trial, spec, watch, records
        self.pruned: Trial | None = None
        self.was_killed = False
        self._lines: deque[str] = deque(maxlen=_LAST_LINES)

    def run(self) -> int:
        """Train; return the exit code. Raises StoppedError once the process has saved and exited."""
        with start_training(
            self.spec, self.job.words, is_alone=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as child:
            code = end_of(child, lambda: self._follow(child))
        self.was_killed = child.returncode < 0
        return code

    def show_lines(self) -> None:
        """Print the error of the process, or else its last 30 lines."""
        lines = list(self._lines)
        first = next((index for index, line in enumerate(lines) if line.startswith(_ERROR)), 0)
        for line in lines[first:]:
            click.echo(printable(line), err=True)

    def _follow(self, child: subprocess.Popen[str]) -> None:
        for line in child.stdout or ():
            event = _event(line)
            if event is None:
                self._lines.append(line.rstrip("\n"))
            elif event.get("event") == "epoch" and self.pruned is None:
                self._end_epoch(event, child)

    def _end_epoch(self, event: Mapping[str, Any], child: subprocess.Popen[str]) -> None:
        epoch, epochs = int(event["epoch"]), int(event["epochs"])
        value = _report_metric(self.watch, epoch, event, self.job.metric)
        if value is None:
            return
        click.echo(f"{self.trial.run_name}  epoch {epoch}/{epochs}  {self.job.metric} {value:.3f}", err=True)
        if epoch < epochs and self.watch.should_prune():
            # Recorded before the process ends, so that the trial stays pruned at this epoch in any case.
            self.pruned = replace(self.trial, state="pruned", value=value, values=dict(self.watch.values))
            self.records.write(self.pruned)
            child.terminate()


def _event(line: str) -> dict[str, Any] | None:
    try:
        event = json.loads(line) if line.startswith('{"event"') else None
    except ValueError:
        return None
    return event if isinstance(event, dict) else None


def _report_metric(watch: Watch, epoch: int, row: Mapping[str, Any], metric: str) -> float | None:
    """Record the metric of an epoch and return it, or None for an epoch without validation."""
    value = row.get(f"validation/{METRICS[metric][0]}")
    if value is None:
        return None
    watch.note(epoch, float(value))
    return float(value)


def _rows(job: TrialJob, trial: Trial) -> list[dict[str, Any]]:
    """Return the rows of the epochs that earlier starts of the trial completed, up to a damaged one."""
    content = job.store.below(trial.run_name).read("history.jsonl")
    lines = content.data.decode("utf-8", "replace").splitlines() if content else []
    rows = [_row(line) for line in lines]
    return rows[: rows.index(None)] if None in rows else rows  # type: ignore[return-value]


def _row(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _has_begun(job: TrialJob, trial: Trial) -> bool:
    return job.store.find(f"{trial.run_name}/spec.yaml") is not None


def _result(job: TrialJob, trial: Trial, others: list[Trial]) -> Trial:
    """Return the trial with the result of its finished run. Raises DataError if the images changed."""
    (run,) = _runs(job, [trial])
    first = next((other for other in others if other.state == "complete"), None)
    if first is not None and first.data != run.dataset.get("digest"):
        require_alike([*_runs(job, [first]), run], "their settings")
    metric, name = METRICS[job.metric]
    value = run.metrics.get(f"validation/{name}")
    if value is None:
        raise UsageError("The runs do not have this metric.", "Choose another --metric.", received=job.metric)
    rows = {int(row["epoch"]): row.get(f"validation/{metric}") for row in run.history}
    return replace(
        trial,
        state="complete",
        value=float(value),
        values={epoch: float(value) for epoch, value in rows.items() if value is not None},
        seconds=run.seconds,
        data=str(run.dataset.get("digest")),
    )


def _runs(job: TrialJob, trials: list[Trial]) -> list[Run]:
    return read_runs([job.store.below(trial.run_name).uri for trial in trials])


def _outcome(trial: Trial, metric: str) -> str:
    if trial.state == "failed":
        return f"failed: {trial.why}"
    pruned = f", pruned after epoch {max(trial.values)}" if trial.state == "pruned" else ""
    return f"{metric} {trial.value:.4f}{pruned}"


def finish(job: TrialJob, as_json: bool) -> None:
    """Write and print the summary of the study. Raises DivergedError if all trials ended incomplete."""
    trials = Records(job.store).all()
    written = None
    while written != trials:  # with several machines, the last one to write has all results
        written, trials = trials, Records(job.store).all()
        summary = _summary(job, trials)
        lines = lines_of(summary)
        job.store.write(SUMMARY, json.dumps(summary, indent=2).encode())
        job.store.write(TABLE, "".join(f"{line}\n" for line in lines).encode())
    for line in [json.dumps(summary, indent=2)] if as_json else lines:
        click.echo(line if as_json else printable(line))
    click.echo(f"summary    {shown_address(job.store.at(TABLE))}", err=as_json)
    is_over = all(trial.is_done for trial in trials)
    if is_over and best_trial(trials, job.search.is_maximized) is None:
        raise DivergedError(
            "No trial was trained to its end, so there are no best settings.",
            "Choose other ranges.",
            received=f"{len(trials)} trials in {job.store.uri}",
        )


def _summary(job: TrialJob, trials: list[Trial]) -> dict[str, Any]:
    best = best_trial(trials, job.search.is_maximized)
    values = as_values(job.search, job.metric, job.store.uri, job.trials, trials)
    if best is None:
        return values
    values["held_out_images"], values["comparison"] = _compared(job, trials, best)
    settings = [word for setting in settings_of(best.settings) for word in ("--set", setting)]
    return values | {"command": shlex.join([*job.command, *settings])}


def _compared(job: TrialJob, trials: list[Trial], best: Trial) -> tuple[int, str]:
    """Return the number of held-out images, and the best trial compared with the first complete one."""
    from trainer.compare.comparison import compare_runs

    first = next(trial for trial in trials if trial.state == "complete")
    if first == best:
        (run,) = _runs(job, [best])
        return run.count, ""
    runs = _runs(job, [first, best])
    return runs[0].count, compare_runs(*runs).verdict
