"""scripts/setup_gcp.sh, run with a fake gcloud that records resources in a file."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "setup_gcp.sh"
OPTIONS = ["--project", "acme", "--bucket", "photos", "--region", "europe-west4", "--cluster", "small"]
GCLOUD = f"""#!{sys.executable}
import json, os, sys
from pathlib import Path
words = sys.argv[1:]
path = Path(os.environ["STATE"])
state = json.loads(path.read_text()) if path.exists() else {{"done": [], "failed": []}}
failing = os.environ.get("FAILING", "")
answers = {{"value(projectNumber)": "123", "value(registryUri)": "registry.test/acme/trainer"}}
form = words[words.index("--format") + 1] if "--format" in words else ""
verbs = ("describe", "get-credentials", "enable", "add-iam-policy-binding", "create", "create-auto")
at = next(index for index, word in enumerate(words) if word in verbs)
made = [call[:at] + call[at + 1:at + 2] for call in state["done"] if call[at].startswith("create")]
if words[at] == "describe":
    name = words[at + 1].split("@")[0]
    sys.exit(0 if print(answers.get(form, "")) or form else words[:at] + [name] not in made)
is_failing = failing in words and state["failed"].count(words) < int(os.environ.get("TIMES", "99"))
state["failed" if is_failing else "done"].append(words)
path.write_text(json.dumps(state))
if is_failing:
    sys.exit("ERROR: (gcloud) PERMISSION_DENIED: " + failing)
"""
REQUIRED_PROGRAMS = ("bash", "env", "dirname", "sed", "cat", "sleep")


class Cloud:
    """Fake gcloud and kubectl programs."""

    def __init__(self, folder: Path) -> None:
        self.state = folder / "state.json"
        programs = folder / "programs"
        programs.mkdir()
        (programs / "gcloud").write_text(GCLOUD)
        (programs / "kubectl").write_text(f'#!/bin/sh\necho "$@" >> {folder}/kubectl\n')
        for program in programs.iterdir():
            program.chmod(0o755)
        self.environment = {
            **os.environ,
            "PATH": f"{programs}:{os.environ['PATH']}",
            "STATE": str(self.state),
            "TRAINER_SETUP_PAUSE": "0",
        }

    def setup(self, *words: str, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [SCRIPT, *words], env=self.environment | environment,
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        return done

    def calls(self) -> list[str]:
        """Return the recorded commands, one line each."""
        done = json.loads(self.state.read_text())["done"] if self.state.exists() else []
        return [" ".join(call) for call in done]


def path_without_gcloud(folder: Path) -> str:
    """Return a PATH with the other programs that the script needs, without gcloud."""
    (programs := folder / "few").mkdir()
    for name in REQUIRED_PROGRAMS:
        path = shutil.which(name)
        assert path is not None, name
        (programs / name).symlink_to(path)
    return str(programs)


@pytest.fixture
def cloud(tmp_path: Path) -> Cloud:
    return Cloud(tmp_path)


def creations(cloud: Cloud) -> list[str]:
    return [call for call in cloud.calls() if " create" in call]


def test_setup_creates_missing_resources_once(cloud: Cloud, tmp_path: Path) -> None:
    first = cloud.setup(*OPTIONS).stdout
    created = creations(cloud)
    assert [call.split(" create")[0] for call in created] == [
        "artifacts repositories", "storage buckets", "iam service-accounts", "container clusters",
    ]  # fmt: skip
    assert "create     bucket gs://photos" in first
    assert "ready      acme, europe-west4, gs://photos" in first
    assert "trainer image push --variant gpu --name registry.test/acme/trainer/trainer" in first
    assert "gcloud auth configure-docker registry.test\n" in first
    assert (tmp_path / "kubectl").read_text() == "apply -f k8s/namespace.yaml\n"
    account = "serviceAccount:trainer@acme.iam.gserviceaccount.com"
    pods = (
        "principal://iam.googleapis.com/projects/123/locations/global/workloadIdentityPools/"
        "acme.svc.id.goog/subject/ns/trainer/sa/trainer"
    )
    bound = [
        call
        for call in cloud.calls()
        if call.startswith("storage buckets add-iam-policy-binding gs://photos")
    ]
    for member, call in zip((account, pods), bound, strict=True):
        assert f"--member {member} --role roles/storage.objectUser" in call
    second = cloud.setup(*OPTIONS).stdout
    assert creations(cloud) == created
    assert second.count("exists     ") == 4
    assert "delete" not in " ".join(cloud.calls())


def test_dry_run_prints_commands_without_requests(cloud: Cloud, tmp_path: Path) -> None:
    output = cloud.setup(*OPTIONS, "--dry-run", PATH=path_without_gcloud(tmp_path)).stdout
    assert not cloud.calls()
    assert "nothing was changed" in output
    cloud.setup(*OPTIONS)
    printed = {line.strip().removeprefix("gcloud ") for line in output.splitlines() if "gcloud " in line}
    done = {
        call.replace("projects/123", "projects/NUMBER").replace(":123-", ":NUMBER-") for call in cloud.calls()
    }
    assert {call.replace("Training jobs", "'Training jobs'") for call in done} <= printed


def test_no_cluster_is_created_without_option(cloud: Cloud, tmp_path: Path) -> None:
    cloud.setup(*OPTIONS[:-2])
    assert not [call for call in cloud.calls() if "container" in call.replace("container.googleapis", "")]
    assert not (tmp_path / "kubectl").exists()


def test_failed_role_binding_is_retried_and_then_reported(cloud: Cloud) -> None:
    role = "roles/storage.objectUser"
    output = cloud.setup(*OPTIONS, FAILING=role, TIMES="2").stdout
    assert output.count("failed, retrying") == 4  # twice for the account and twice for the pods
    output = cloud.setup(*OPTIONS, FAILING=role, code=2).stderr
    assert "PERMISSION_DENIED" in output
    assert "Error: A role could not be granted." in output


def test_failed_creation_is_reported_and_stops_setup(cloud: Cloud) -> None:
    output = cloud.setup(*OPTIONS, FAILING="gs://photos", code=2)
    assert "Error: The bucket gs://photos could not be created" in output.stderr
    assert "service-accounts" not in " ".join(cloud.calls())  # nothing is created after the failure
    cloud.setup(*OPTIONS)  # continues at the failed resource
    assert len(creations(cloud)) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "project ID with --project"),
        (["--project"], "requires a value"),
        (["--project", "acme"], "with --bucket NAME"),
        (["--project", "acme", "--bucket", "a b"], "with --bucket NAME"),
        (["--project", "acme", "--bucket", "b1", "--region", "mars"], "The region is invalid"),
        (["--projekt", "acme"], "--help lists"),
        (["--project", "--dry-run", "--bucket", "b1"], "requires a value"),
        (["--project", "p; rm -rf x", "--bucket", "b1"], "The name is invalid"),
        (["--project", "acme", "--bucket", "b1", "--cluster", "c\x1b[31m"], "The name is invalid"),
    ],
)
def test_invalid_options_are_rejected_before_any_request(
    cloud: Cloud, options: list[str], message: str
) -> None:
    errors = cloud.setup(*options, code=2).stderr
    assert errors.startswith("Error: ")
    assert message in errors
    assert "Received: " in errors
    assert not cloud.calls()


def test_missing_gcloud_is_reported_with_remedy(cloud: Cloud, tmp_path: Path) -> None:
    output = cloud.setup(*OPTIONS, code=2, PATH=path_without_gcloud(tmp_path)).stderr
    assert "gcloud is not installed" in output


@pytest.mark.skipif(shutil.which("gcloud") is None, reason="there is no gcloud")
def test_gcloud_accepts_every_command_and_flag(cloud: Cloud, tmp_path: Path) -> None:
    output = cloud.setup(*OPTIONS, "--dry-run").stdout
    commands = [shlex.split(line) for line in output.splitlines() if line.strip().startswith("gcloud ")]
    assert len(commands) >= 12
    for command in commands:
        # gcloud parses the whole line before it sends requests, and lists all unknown arguments.
        done = subprocess.run(
            [*command, "--no-such-flag"], env={**os.environ, "CLOUDSDK_CONFIG": str(tmp_path)},
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 2, command
        assert done.stderr.split("\n\n")[0].endswith("unrecognized arguments: --no-such-flag "), done.stderr
