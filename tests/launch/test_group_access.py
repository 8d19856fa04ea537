"""Secret and network policy of jobs whose workers train one model together."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.kube_cluster import Cluster

from trainer.distributed import read_process_info
from trainer.launch.accelerators import find_accelerator
from trainer.launch.kubernetes import KubernetesCluster, objects_of
from trainer.launch.plan import JobPlan, check_plan
from trainer.launch.vertex import Project, custom_job, scheduler_job
from trainer.spec import load_spec

ROOT = Path(__file__).resolve().parents[2]
TOKEN = re.compile(r"\b[0-9a-f]{64}\b")
CONNECTED: dict[str, dict[str, Any]] = {
    "job": {"workers": 4},
    "jobset": {"workers": 4, "is_jobset": True},
    "cronjob": {"workers": 2, "schedule": "0 3 * * 1"},
}
SEPARATE: dict[str, dict[str, Any]] = {
    "one worker": {},
    "jobset of one": {"is_jobset": True},
    "search": {"workers": 4, "search": ("--trials", "8")},
}


def plan_of(platform: str = "gke", **changes: Any) -> JobPlan:
    spec = load_spec(None, "demo", (), {"output": "gs://bucket/runs"})
    values = {"platform": platform, "name": "pets", "spec": spec, "image": "registry/trainer:gpu"}
    return check_plan(JobPlan(**(values | {"accelerator": find_accelerator("nvidia-l4:1")} | changes)))


def by_kind(plan: JobPlan) -> dict[str, dict[str, Any]]:
    return {each["kind"]: each for each in objects_of(plan, KubernetesCluster())}


def template_of(value: dict[str, Any]) -> dict[str, Any]:
    """Return the pod template of a Job, JobSet or CronJob."""
    spec = value["spec"]
    job = (
        spec["replicatedJobs"][0]["template"] if "replicatedJobs" in spec else spec.get("jobTemplate", value)
    )
    return dict(job["spec"]["template"])


@pytest.mark.parametrize("name", CONNECTED)
def test_connected_workers_get_the_token_from_a_secret_of_their_job(name: str) -> None:
    plan = plan_of(**CONNECTED[name])
    objects = by_kind(plan)
    secret, main = objects["Secret"], list(objects.values())[-1]
    assert main["metadata"]["name"] == secret["metadata"]["name"] == "pets"
    assert secret["metadata"]["namespace"] == main["metadata"]["namespace"]
    (token,) = secret["stringData"].values()
    assert TOKEN.fullmatch(token)
    variables = {each["name"]: each for each in template_of(main)["spec"]["containers"][0]["env"]}
    reference = variables["TRAINER_GROUP_SECRET"]["valueFrom"]["secretKeyRef"]
    assert reference == {"name": "pets", "key": next(iter(secret["stringData"]))}  # not optional
    # No other object, and no text of the plan, contains the token.
    assert token not in json.dumps([each for each in objects.values() if each is not secret]) + repr(plan)


@pytest.mark.parametrize("name", CONNECTED)
def test_network_policy_admits_only_the_pods_of_the_job(name: str) -> None:
    objects = by_kind(plan_of(**CONNECTED[name]))
    labels = template_of(list(objects.values())[-1])["metadata"]["labels"]
    policy = objects["NetworkPolicy"]["spec"]
    selected = policy["podSelector"]["matchLabels"]
    assert selected
    assert selected.items() <= labels.items()
    assert policy["policyTypes"] == ["Ingress"]
    (rule,) = policy["ingress"]
    assert rule == {"from": [{"podSelector": {"matchLabels": selected}}]}  # of the same namespace
    other = by_kind(plan_of(**{**CONNECTED[name], "name": "cats"}))
    other_labels = template_of(list(other.values())[-1])["metadata"]["labels"]
    assert not selected.items() <= other_labels.items()


@pytest.mark.parametrize("name", SEPARATE)
def test_jobs_without_connected_workers_have_neither(name: str) -> None:
    objects = by_kind(plan_of(**SEPARATE[name]))
    assert not {"Secret", "NetworkPolicy", "Service"} & set(objects)
    assert "TRAINER_GROUP_SECRET" not in json.dumps(list(objects.values()))
    if not SEPARATE[name].get("is_jobset"):
        body = custom_job(plan_of("vertex", **SEPARATE[name]), Project("acme", "europe-west4"))
        assert "TRAINER_GROUP_SECRET" not in json.dumps(body)


def test_every_submitted_job_has_a_token_of_its_own() -> None:
    tokens = {plan_of(workers=2).group_secret for _ in range(20)}
    assert len(tokens) == 20
    plan = plan_of(workers=2)
    assert replace(plan, name="pets-2").group_secret == plan.group_secret


def test_all_workers_on_vertex_have_the_same_token() -> None:
    plan = plan_of("vertex", workers=3)
    project = Project("acme", "europe-west4", "trainer@acme.iam.gserviceaccount.com")
    first, rest = custom_job(plan, project)["jobSpec"]["workerPoolSpecs"]
    for pool in (first, rest):
        environment = {each["name"]: each["value"] for each in pool["containerSpec"]["env"]}
        assert environment["TRAINER_GROUP_SECRET"] == plan.group_secret
    body = scheduler_job(replace(plan, schedule="0 3 * * 1"), project)["httpTarget"]["body"]
    assert base64.b64decode(body).decode().count(plan.group_secret) == 2


def test_workers_read_the_token_and_never_print_it() -> None:
    job = {"TRAINER_WORKERS": "2", "TRAINER_SERVICE": "pets", "JOB_COMPLETION_INDEX": "1"}
    process = read_process_info({**job, "TRAINER_GROUP_SECRET": " t0ken\n"}, "pets-1")
    assert process.secret == b"t0ken"
    assert "t0ken" not in repr(process)
    assert read_process_info(job, "pets-1").secret == b""


def test_manifests_contain_no_token_and_show_how_to_create_it() -> None:
    for path in (ROOT / "k8s").iterdir():
        text = path.read_text()
        assert not TOKEN.search(text), path.name
        kinds = [each["kind"] for each in yaml.safe_load_all(text)]
        assert "Secret" not in kinds
        assert ("NetworkPolicy" in kinds) == ("secretKeyRef" in text) == ("kubectl create secret" in text)
    text = (ROOT / "k8s" / "job-hosts-spot.yaml").read_text()
    assert "# kubectl create secret generic hosts-spot --namespace trainer --from-literal=token=" in text


def put(cluster: Cluster, resource: str, labels: dict[str, str]) -> None:
    cluster.kube.put(resource, "trainer", {"metadata": {"name": "pets", "labels": labels}})


def test_cancel_removes_the_secret_and_the_policy_that_a_deleted_job_left(cluster: Cluster) -> None:
    for resource in ("secrets", "networkpolicies"):
        put(cluster, resource, {"app.kubernetes.io/managed-by": "trainer"})
    done = cluster.quick("cancel", "gke", "pets")
    assert (done.returncode, done.stdout) == (0, "ended      pets (secret, networkpolicy)\n"), done.stderr
    assert not cluster.kube.objects


@pytest.mark.parametrize(("resource", "kind"), [("secrets", "Secret"), ("networkpolicies", "NetworkPolicy")])
def test_foreign_object_of_the_name_is_kept_and_named(cluster: Cluster, resource: str, kind: str) -> None:
    put(cluster, resource, {})
    assert "no job of this name" in cluster.refused("cancel", "gke", "pets")
    words = [
        "submit",
        "gke",
        "--recipe",
        "demo",
        "--image",
        "r/t:gpu",
        "--output",
        "gs://bucket/runs",
        "--yes",
    ]
    message = cluster.refused(*words, "--run-name", "pets", "--workers", "2")
    assert f"has a {kind} named pets" in message
    assert cluster.kube.names(resource) == ["pets"]
    assert len(cluster.kube.objects) == 1
