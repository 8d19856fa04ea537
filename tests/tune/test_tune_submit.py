"""A search on a cluster: an Indexed TrialJob whose workers share the trials."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from helpers.trainer_process import error_line, trainer

from trainer.cli.tune import search_words
from trainer.distributed import read_share
from trainer.errors import UsageError
from trainer.launch.accelerators import find_accelerator
from trainer.launch.kubernetes import KubernetesCluster, objects_of
from trainer.launch.plan import JobPlan, check_plan, describe_plan
from trainer.launch.vertex import Project, custom_job
from trainer.spec import load_spec

GIVEN: dict[str, Any] = {
    "trials": 8, "metric": "accuracy", "no_pruning": True, "workers": 4,
    "parameters": ("optimizer.name=sgd|adamw", "train.label_smoothing=0..0.3:0.1"),
}  # fmt: skip


def plan_of(accelerator: str = "nvidia-l4:1", **changes: Any) -> JobPlan:
    spec = load_spec(None, "demo", (), {"output": "gs://bucket/runs"})
    values = {
        "platform": "gke",
        "name": "pets-1",
        "spec": spec,
        "image": "registry/trainer:gpu",
        "workers": 4,
    }
    words = {"search": search_words(spec, GIVEN), "accelerator": find_accelerator(accelerator)}
    return check_plan(JobPlan(**(values | words | changes)))


@pytest.mark.parametrize("accelerator", ["nvidia-l4:2", "tpu-v5e:2x4", "cpu"])
def test_search_workers_share_trials_without_connecting(accelerator: str) -> None:
    plan = plan_of(accelerator)
    (job,) = objects_of(plan, KubernetesCluster())  # a single object: the job has no Service
    for version in ("1.31", "1.37"):
        kubernetes_validate.validate(job, version, strict=True)
    assert (job["kind"], job["spec"]["completionMode"], job["spec"]["completions"]) == ("Job", "Indexed", 4)
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["args"][: len(plan.search) + 1] == ["tune", *plan.search]
    assert plan.search[:5] == ("--trials", "8", "--metric", "accuracy", "--no-pruning")
    variables = {each["name"]: each.get("value") for each in container["env"]}
    assert "TRAINER_SERVICE" not in variables
    assert "subdomain" not in pod
    assert "ports" not in container
    assert read_share({"TRAINER_WORKERS": variables["TRAINER_WORKERS"], "JOB_COMPLETION_INDEX": "3"}) == (
        3,
        4,
    )
    assert "search, 4 workers" in describe_plan(plan, "here")[0]


def test_dollar_sign_in_a_parameter_is_preserved() -> None:
    (job,) = objects_of(plan_of(search=("--parameter", "model.filters=$(HOME)|$")), KubernetesCluster())
    assert job["spec"]["template"]["spec"]["containers"][0]["args"][2] == "model.filters=$$(HOME)|$$"


def test_lost_search_worker_does_not_restart_the_others_on_vertex_ai() -> None:
    job = custom_job(plan_of(platform="vertex"), Project("p", "us-central1"))
    assert not job["jobSpec"]["scheduling"]["restartJobOnWorkerRestart"]
    assert job["jobSpec"]["workerPoolSpecs"][1]["replicaCount"] == "3"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"trials": None}, "--parameter without --trials"),
        ({"parameters": ()}, "--trials without --parameter"),
        ({"workers": 9}, "9 workers for 8 trials"),
        ({"schedule": "0 3 * * 1"}, "Remove --schedule"),
        ({"is_jobset": True}, "Remove --jobset"),
        ({"assert_accuracy_at_least": 0.9}, "Remove --assert-accuracy-at-least"),
        ({"parameters": ("optimizer.nam=sgd|adamw",)}, "Did you mean optimizer.name?"),
    ],
)
def test_search_that_cannot_be_submitted_is_refused_first(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=re.escape(words)) as caught:
        search_words(load_spec(), GIVEN | changes)
    assert "Received: " in str(caught.value)


def test_submit_sends_a_search_with_its_parameters(tmp_path: Path) -> None:
    words = ["submit", "gke", "--output", "gs://bucket/runs", "--image", "registry/trainer", "--dry-run"]
    search = ["--trials", "4", "--workers", "2", "--parameter", "train.epochs=1..3"]
    done = trainer(*words, *search, cache=tmp_path)
    assert done.returncode == 0, done.stderr
    args = yaml.safe_load(done.stdout)["spec"]["template"]["spec"]["containers"][0]["args"]
    assert args[:5] == ["tune", "--trials", "4", "--metric", "accuracy"]
    assert args[5:7] == ["--parameter", "train.epochs=1..3"]
    assert "Remove --jobset" in error_line(trainer(*words, *search, "--jobset", cache=tmp_path), 2)
