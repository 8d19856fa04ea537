"""State of a JobSet: a failed child job is recreated until the failure policy ends the JobSet."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from trainer.launch.state import State, state_of, true_conditions

_FAILED_JOB_SET = "FailJobSet"
_IGNORES_MAX = "IgnoreMaxRestarts"
_REASONS = {
    "FailJobSetFailurePolicyAction": "it ended in a way that a retry does not fix",
    "ReachedMaxRestarts": "it failed too often",
    "DeadlineExceeded": "it took longer than its deadline",
}


def jobset_state(
    jobset: Mapping[str, Any], job: Mapping[str, Any] | None, pods: Sequence[Mapping[str, Any]], now: datetime
) -> State:
    """Return the state of `jobset` with its child `job`, None while there is none, and the child's `pods`."""
    name, conditions = jobset["metadata"]["name"], true_conditions(jobset)
    restarts = int(jobset.get("status", {}).get("restarts", 0))
    child = State(name, "waiting", "", ()) if job is None else state_of(job, pods, now)
    if "Completed" in conditions:
        return State(name, "finished", child.about if child.word == "finished" else "", (), 0)
    if (failed := conditions.get("Failed")) is not None:
        reason = str(failed.get("reason", ""))
        about = child.about if child.word == "failed" else _REASONS.get(reason, reason)
        return State(name, "failed", _with_restarts(about, restarts), child.lines, child.exit_code or 1)
    if "Suspended" in conditions or jobset.get("spec", {}).get("suspend"):
        return State(name, "suspended", "spec.suspend is set", child.lines)
    if job is None:
        about = "its job is being created again" if restarts else "its job has not been created yet"
        return State(name, "restarting" if restarts else "waiting", _with_restarts(about, restarts), ())
    if child.word != "failed" or not _restarts_after(jobset, job):
        return replace(child, name=name, about=_with_restarts(child.about, restarts), exit_code=None)
    about = (
        f"{child.about}; all workers start again ({_used(jobset)} of {_max_restarts(jobset)} restarts used)"
    )
    return State(name, "restarting", about, child.lines)


def _with_restarts(about: str, restarts: int) -> str:
    return f"{about}, after {restarts} restart{'s' * (restarts > 1)}" if restarts else about


def _used(jobset: Mapping[str, Any]) -> int:
    return int(jobset.get("status", {}).get("restartsCountTowardsMax", 0))


def _max_restarts(jobset: Mapping[str, Any]) -> int:
    return int(jobset.get("spec", {}).get("failurePolicy", {}).get("maxRestarts", 0))


def _restarts_after(jobset: Mapping[str, Any], job: Mapping[str, Any]) -> bool:
    """Return whether the failure policy recreates the failed `job`; the first matching rule applies."""
    conditions = true_conditions(job)
    failed = conditions.get("Failed") or conditions["FailureTarget"]
    rules = jobset.get("spec", {}).get("failurePolicy", {}).get("rules", [])
    action = next((str(rule["action"]) for rule in rules if _fits(rule, failed)), "RestartJobSet")
    is_allowed = action.endswith(_IGNORES_MAX) or _used(jobset) < _max_restarts(jobset)
    return action != _FAILED_JOB_SET and is_allowed


def _fits(rule: Mapping[str, Any], failed: Mapping[str, Any]) -> bool:
    reasons, patterns = rule.get("onJobFailureReasons"), rule.get("onJobFailureMessagePatterns")
    has_reason = not reasons or failed.get("reason") in reasons
    return has_reason and (
        not patterns or any(re.search(pattern, str(failed.get("message", ""))) for pattern in patterns)
    )
