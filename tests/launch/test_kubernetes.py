"""Kubernetes manifests: schema validation, properties beyond the schemas, and the files in k8s/."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from trainer.distributed import read_process_info
from trainer.errors import EXIT_CODES, UsageError
from trainer.launch.accelerators import PRICE_DATE, find_accelerator
from trainer.launch.kubernetes import KubernetesCluster, failure_policy, objects_of
from trainer.launch.plan import JobPlan, check_plan, describe_plan, locations_of, make_name, with_price
from trainer.spec import RunSpec, load_spec, parse_spec

ROOT = Path(__file__).resolve().parents[2]
JOBSET_SCHEMA = Path(__file__).parents[1] / "helpers" / "jobset_schema.json"
"""JSON schema of a JobSet's spec (jobset.x-k8s.io/v1alpha2), without its job templates."""
VERSIONS = ("1.31", "1.37")
"""The oldest Kubernetes version that has all fields in use, and the newest one."""
PARTS = {
    "one": {},
    "gpus": {"accelerator": "nvidia-l4:8"},
    "hosts": {"workers": 4, "is_spot": True},
    "tpu": {"accelerator": "tpu-v5e:2x4"},
    "cpu": {"accelerator": "cpu"},
    "queued": {"queue": "team"},
    "jobset": {"workers": 4, "is_jobset": True, "queue": "team"},
    "cron": {"schedule": "0 3 * * 1", "time_zone": "America/Sao_Paulo", "queue": "team"},
    "cron of hosts": {"schedule": "0 3 * * 1", "workers": 2},
}


PRETRAINED = ("model={family: pretrained}", "data.image_size=32")


def spec_of(*settings: str, **overrides: Any) -> RunSpec:
    return load_spec(None, "demo", settings, {"output": "gs://bucket/runs", **overrides})


def plan_of(**changes: Any) -> JobPlan:
    accelerator = find_accelerator(changes.pop("accelerator", "nvidia-l4:1"))
    values = {"platform": "gke", "name": "pets-1", "spec": spec_of(), "image": "registry/trainer:gpu"}
    return check_plan(JobPlan(**(values | {"accelerator": accelerator} | changes)))


def script() -> Any:
    found = importlib.util.spec_from_file_location("render", ROOT / "scripts" / "render_manifests.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def all_objects() -> dict[str, list[dict[str, Any]]]:
    rendered = {name: objects_of(plan_of(**parts), KubernetesCluster()) for name, parts in PARTS.items()}
    rendered["any cluster"] = objects_of(plan_of(), KubernetesCluster(has_gke_labels=False))
    rendered["by hand"] = list(yaml.safe_load_all((ROOT / "k8s" / script().NAMESPACE).read_text()))
    return rendered


OBJECTS = all_objects()


def pods() -> dict[str, dict[str, Any]]:
    found = {}
    for name, objects in OBJECTS.items():
        for value in objects:
            spec = value.get("spec", {})
            template = spec.get("replicatedJobs", [{}])[0].get("template") or spec.get("jobTemplate", {})
            job = template.get("spec", spec)
            if "template" in job:
                found[name] = {
                    "job": job,
                    "pod": job["template"]["spec"],
                    "meta": job["template"]["metadata"],
                }
    return found


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", OBJECTS)
def test_objects_match_kubernetes_schemas(name: str, version: str) -> None:
    for value in OBJECTS[name]:
        if value["kind"] == "JobSet":  # not part of the Kubernetes schemas
            jsonschema.validate(value["spec"], json.loads(JOBSET_SCHEMA.read_text()))
            template = value["spec"]["replicatedJobs"][0]["template"]
            value = {"apiVersion": "batch/v1", "kind": "Job", **template}
        kubernetes_validate.validate(value, version, strict=True)


@pytest.mark.parametrize("name", pods())
def test_pods_have_properties_that_schemas_do_not_check(name: str) -> None:
    found = pods()[name]
    job, pod = found["job"], found["pod"]
    container = pod["containers"][0]
    assert pod["restartPolicy"] == "Never"  # required by podFailurePolicy
    assert job["podReplacementPolicy"] == "Failed"  # the only value allowed with a podFailurePolicy
    assert not pod["automountServiceAccountToken"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert not container["securityContext"]["allowPrivilegeEscalation"]
    assert {value["name"] for value in container["volumeMounts"]} == {
        value["name"] for value in pod["volumes"]
    }
    for kind, value in container["resources"]["limits"].items():
        assert container["resources"]["requests"][kind] == value  # devices and memory cannot be overcommitted
    for rule in job["podFailurePolicy"]["rules"]:
        if "onExitCodes" in rule:
            assert rule["onExitCodes"]["containerName"] == container["name"]
            assert rule["onExitCodes"]["values"] == sorted(set(rule["onExitCodes"]["values"]))
            assert 0 not in rule["onExitCodes"]["values"]
    if "completions" in job:
        assert job["completions"] == job["parallelism"] > 1
        assert job["completionMode"] == "Indexed"
        services = {value["metadata"]["name"] for value in OBJECTS[name] if value["kind"] == "Service"}
        assert pod.get("subdomain") in (services or {None})  # a JobSet sets its own subdomain
    assert "suspend" not in job


def test_jobset_restarts_all_workers_together() -> None:
    made = OBJECTS["jobset"][-1]
    spec = made["spec"]
    job = pods()["jobset"]["job"]
    assert made["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team"
    # A retryable exit code fails the job, which restarts all workers; a final code fails the JobSet.
    assert job["backoffLimit"] == 0
    # A disruption fails the job too, so that no worker is replaced alone.
    assert job["podFailurePolicy"] == failure_policy("FailJob")
    assert job["podFailurePolicy"]["rules"][0]["action"] == "FailJob"
    assert job["podFailurePolicy"]["rules"][1:] == failure_policy()["rules"][1:]
    assert spec["failurePolicy"]["maxRestarts"] == 3
    disruption, final = spec["failurePolicy"]["rules"]  # the first match applies
    assert (disruption["action"], final["action"]) == ("RestartJobSetAndIgnoreMaxRestarts", "FailJobSet")
    assert disruption["onJobFailureReasons"] == ["PodFailurePolicy"]
    assert final["onJobFailureReasons"] == ["PodFailurePolicy", "DeadlineExceeded"]
    (pattern,) = disruption["onJobFailureMessagePatterns"]  # of the job controller's messages
    assert re.search(pattern, "Pod t/p-2-x has condition DisruptionTarget matching FailJob rule at index 0")
    code = "Container trainer for pod t/p-2-x failed with exit code 65 matching FailJob rule at index 1"
    assert not re.search(pattern, code)
    variables = {value["name"]: value for value in pods()["jobset"]["pod"]["containers"][0]["env"]}
    # Pods are named JOBSET-worker-0-INDEX; their subdomain is the service that the workers look up.
    assert variables["TRAINER_SERVICE"]["value"] == spec["network"]["subdomain"] == made["metadata"]["name"]
    field = variables["TRAINER_RUN_NAME"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert field == "metadata.labels['jobset.sigs.k8s.io/jobset-name']"
    process = read_process_info(
        {"TRAINER_WORKERS": "4", "TRAINER_SERVICE": "pets-1", "JOB_COMPLETION_INDEX": "2"},
        "pets-1-worker-0-2",
    )
    assert process.addresses[3].startswith("pets-1-worker-0-3.pets-1:")


def test_service_selects_pods_of_its_job() -> None:
    for name in ("hosts", "cron of hosts"):
        service = OBJECTS[name][0]
        labels = pods()[name]["meta"]["labels"]
        assert service["spec"]["selector"].items() <= labels.items()
        assert service["spec"]["clusterIP"] == "None"
        ports = {value["port"] for value in service["spec"]["ports"]}
        assert ports == {value["containerPort"] for value in pods()[name]["pod"]["containers"][0]["ports"]}


def test_failure_policy_matches_table_of_exit_codes() -> None:
    actions = {
        code: rule["action"]
        for rule in failure_policy()["rules"]
        for code in rule.get("onExitCodes", {"values": []})["values"]
    }
    for code, (_, policy) in EXIT_CODES.items():
        assert actions.get(code, "Count" if code else "-") == policy, code
    first = failure_policy()["rules"][0]  # a disruption, with any exit code
    assert first["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]


def test_queue_label_is_set_on_job_and_not_on_cronjob() -> None:
    label = "kueue.x-k8s.io/queue-name"
    assert OBJECTS["queued"][0]["metadata"]["labels"][label] == "team"
    cron = OBJECTS["cron"][0]
    assert label not in cron["metadata"]["labels"]
    assert cron["spec"]["jobTemplate"]["metadata"]["labels"][label] == "team"


def test_container_receives_spec_and_run_name_of_job() -> None:
    spec = spec_of("train.epochs=3", run_name="pets-1")
    container = objects_of(plan_of(spec=spec), KubernetesCluster())[0]["spec"]["template"]["spec"][
        "containers"
    ][0]
    variables = {value["name"]: value for value in container["env"]}
    assert parse_spec(variables["TRAINER_SPEC"]["value"], "here") == spec.model_copy(
        update={"run_name": None}
    )
    field = variables["TRAINER_RUN_NAME"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert field == "metadata.labels['batch.kubernetes.io/job-name']"
    assert container["args"] == ["train", "--require-accelerator", "gpu:1"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "Pets"}, "lowercase letters"),
        ({"name": "1pets"}, "beginning with a letter"),
        ({"name": "a" * 64}, "at most 63"),
        ({"name": "a" * 62, "workers": 11}, "at most 60"),
        ({"name": "a" * 53, "schedule": "0 3 * * 1"}, "at most 52"),
        ({"schedule": "0 3 * *"}, "five fields"),
        ({"schedule": "0 3 * * 1 2"}, "five fields"),
        ({"schedule": "61 3 * * 1"}, "five fields"),
        ({"schedule": "0 0 30 2 *"}, "five fields"),
        ({"schedule": "@daily"}, "five fields"),
        ({"schedule": "0 3 * * 1", "time_zone": "Mars/Olympus"}, "no such time zone"),
        ({"schedule": "0 3 * * 1", "time_zone": "../etc/passwd"}, "no such time zone"),
        ({"accelerator": "tpu-v5e:2x4", "workers": 2}, "one process"),
        ({"spec": load_spec(None, "demo")}, "is lost when"),
        ({"spec": spec_of(**{"data.source": "/home/me/photos"})}, "cannot access folders"),
        ({"image": "trainer:gpu"}, "cannot access images"),
        ({"is_spot": True, "spec": spec_of("train.grace_seconds=40")}, "A Spot VM gives a pod at most 15 s"),
        ({"spec": spec_of("train.grace_seconds=900")}, "GKE gives a pod at most 580 s"),
        ({"platform": "docker", "workers": 2}, "does not support --workers"),
        ({"platform": "docker", "schedule": "0 3 * * 1"}, "does not support --schedule"),
        ({"platform": "docker", "is_spot": True}, "does not support --spot"),
        ({"platform": "docker", "accelerator": "tpu-v5e"}, "does not support a TPU"),
        ({"accelerator": "nvidia-h100-80gb:1"}, "only as a Spot VM or with flex-start"),
        ({"spec": spec_of("publish.test_data=/home/me/test")}, "cannot access folders"),
        (
            {"spec": spec_of(**{"data.source": "https://me:secret@a.example/b.zip"})},
            "everyone who can view the job could read",
        ),
        *(
            ({"platform": platform, "spec": spec_of(*PRETRAINED, f"model.weights={weights}")}, words)
            for platform in ("gke", "vertex")
            for weights, words in (
                (
                    "/home/me/w.h5",
                    "Put the file in a bucket and set its gs:// URI with --set model.weights=",
                ),
                ("embedded:w.h5", "cannot access folders"),
                ("https://a.example/w.h5?sig=secret", "Received: model.weights https://a.example/w.h5?..."),
                ("https://me:secret@a.example/w.h5", "everyone who can view the job could read"),
            )
        ),
        ({"spec": spec_of(*PRETRAINED, "model.weights=gs://me:key@bucket/w.h5")}, "cannot contain a key"),
        ({"spec": spec_of("train.start_from=/runs/one")}, "gs://BUCKET/RUNS/NAME"),
        ({"spec": spec_of("train.start_from=https://a.example/one")}, "gs://BUCKET/RUNS/NAME"),
        ({"schedule": "0 3 * * 7"}, "Sunday is 0"),
        ({"schedule": "0 3 L * *"}, "Sunday is 0"),
        ({"schedule": "* * * * 5#2"}, "Sunday is 0"),
        ({"is_jobset": True, "schedule": "0 3 * * 1"}, "creates Jobs, not JobSets"),
        ({"is_jobset": True, "name": "a" * 47}, "at most 46"),
    ],
)
def test_check_plan_rejects_what_platform_would_reject(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as raised:
        plan_of(**changes)
    assert words in str(raised.value)
    assert "Received: " in str(raised.value)


@pytest.mark.parametrize(
    ("weights", "locations"),
    [
        ("default", {}), ("none", {}), ("https://a.example/w.h5", {"https://a.example/w.h5": False}),
        ("gs://other/w.h5", {"gs://other/w.h5": False}),
    ],
)  # fmt: skip
def test_remote_weights_are_accepted_and_listed_as_location(weights: str, locations: dict[str, bool]) -> None:
    plan = plan_of(spec=spec_of(*PRETRAINED, f"model.weights={weights}"))
    assert locations_of(plan.spec) == {"embedded:digits": False, **locations, "gs://bucket/runs": True}


def test_schedules_of_both_platforms_are_accepted() -> None:
    for schedule in ("*/15 0-5 1,15 JAN-MAR MON", "0 3 * * 0", "5 4 * * 1-5"):
        assert plan_of(schedule=schedule).schedule == schedule


@pytest.mark.parametrize("price", [0.0, 1e-6, 0.123456789, 98.32])
def test_price_in_spec_is_parsed_by_job(price: float) -> None:
    plan = plan_of()
    assert plan.accelerator.price is not None
    accelerator = replace(plan.accelerator, price=replace(plan.accelerator.price, on_demand=price))
    sent = with_price(replace(plan, accelerator=accelerator)).spec_text
    assert parse_spec(sent, "here").publish.usd_per_hour == pytest.approx(price, rel=1e-5)


def test_dollar_signs_in_spec_are_escaped() -> None:
    spec = spec_of(**{"data.source": "gs://bucket/$(HOME)/$$/x"})
    container = objects_of(plan_of(spec=spec), KubernetesCluster())[0]["spec"]["template"]["spec"][
        "containers"
    ][0]
    value = next(value["value"] for value in container["env"] if value["name"] == "TRAINER_SPEC")
    assert parse_spec(value.replace("$$", "$"), "here").data.source == spec.data.source
    assert not re.search(r"(?<!\$)(\$\$)*\$\(", value)  # no $(VARIABLE) that Kubernetes would expand


def test_describe_plan_states_job_location_and_cost() -> None:
    plan = plan_of(workers=4, is_spot=True, deadline_seconds=6 * 3600)
    text = "\n".join(describe_plan(plan, "acme, namespace trainer"))
    assert "job pets-1, 4 workers, nvidia-l4:1 each (g2-standard-8, spot)" in text
    assert "gs://bucket/runs/pets-1" in text
    cost = plan.cost_per_hour()
    assert cost == pytest.approx(4 * 0.341)
    assert f"about {cost:.2f} USD per hour (spot list price of {PRICE_DATE}, us-central1)" in text
    assert f"at most {6 * cost:.2f} with its deadline of 6 h" in text
    several = "\n".join(describe_plan(replace(plan, is_jobset=True), "acme"))
    assert (
        f"at most {4 * 6 * cost:.2f}, because the deadline of 6 h restarts with each of 3 restarts" in several
    )
    unknown = "\n".join(describe_plan(plan_of(accelerator="tpu-v5e"), "acme"))
    assert "unknown: there is no price for tpu-v5e:1x1" in unknown


def test_generated_job_name_is_valid_on_kubernetes() -> None:
    names = {make_name(spec_of()) for _ in range(20)}
    assert len(names) == 20
    for name in names:
        assert re.fullmatch(r"demo-[0-9a-f]{6}", name)
    assert make_name(spec_of(run_name="mine")) == "mine"


def test_manifests_in_k8s_are_up_to_date() -> None:
    render = script()
    subprocess.run([sys.executable, ROOT / "scripts" / "render_manifests.py", "--check"], check=True)
    there = {path.name for path in (ROOT / "k8s").iterdir()}
    assert there == {*render.MANIFESTS, render.NAMESPACE}
    for path in (ROOT / "k8s").iterdir():
        for value in yaml.safe_load_all(path.read_text()):
            kubernetes_validate.validate(value, VERSIONS[-1], strict=True)
