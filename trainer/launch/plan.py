"""Plan of a job: what is created, on which platform and at what cost, validated before anything is created.

A `JobPlan` combines a resolved spec with the options of the command line. Each platform creates its objects
from it, and `describe_plan` returns the summary for confirmation.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, field, replace
from typing import Literal

from cronsim import CronSim, CronSimError

from trainer.errors import UsageError
from trainer.launch.accelerators import Accelerator
from trainer.sanitize import shown_address
from trainer.spec import PretrainedSpec, RunSpec, dump_spec
from trainer.spec.networks import DEFAULT_WEIGHTS, NO_WEIGHTS
from trainer.spec.schema import CHAMPION, LATEST, SCRATCH
from trainer.storage.store import GS, is_bucket, split_uri, without_scheme

Platform = Literal["docker", "gke", "vertex"]

SPEC = "TRAINER_SPEC"
"""Environment variable with the spec as YAML in the container."""
RUN_NAME = "TRAINER_RUN_NAME"
_MAX_SPEC_BYTES = 100_000
"""Limit for one environment variable: Linux allows 128 KiB, Vertex AI less."""
_MAX_NAME_LENGTH = 63
RETRIES = 3
"""Retries for exit codes of policy Count; ignored ones, such as a preemption, do not count."""
GROUP_LABEL = "trainer/group"
"""Label of all pods of a job; its value is the name of the job."""
REPLICATED_JOB = "worker"
"""Name of the only job in a JobSet."""
_MAX_CRON_JOB_LENGTH = 52
"""Shorter because Kubernetes appends a number to it."""
_IMAGE = r"([\w.-]+(:\d+)?/)?[a-z0-9]+([._/-]+[a-z0-9]+)*(:[\w][\w.-]{0,127})?(@sha256:[0-9a-f]{64})?"
"""Image names that engines and registries accept."""
_IMAGE_FOLDERS = (
    "/", "/opt", "/usr", "/etc", "/bin", "/sbin", "/lib", "/lib64", "/proc", "/sys", "/dev", "/tmp",
)  # fmt: skip
"""Folders of the container that cannot be mount points."""
_HOUR_SECONDS = 3600
SPOT_GRACE_SECONDS = 15
"""Grace period of GKE for the pods of a Spot VM."""
END_SECONDS = 20
"""Time for a process to exit after its grace period."""
_MAX_GRACE_SECONDS = 600 - END_SECONDS
"""GKE waits at most ten minutes for the pods of a node that is scaled down."""
_WIDTH = 11


@dataclass(frozen=True)
class JobPlan:
    """One job, or a schedule of jobs."""

    platform: Platform
    name: str
    """Name of the job and of the run; with a schedule each run is named when it starts."""
    spec: RunSpec
    image: str
    accelerator: Accelerator
    """Accelerators of each worker."""
    workers: int = 1
    is_spot: bool = False
    is_flexible: bool = False
    """Whether the job may wait for capacity (Vertex AI's flex-start)."""
    schedule: str | None = None
    """Cron schedule of five fields."""
    time_zone: str = "Etc/UTC"
    queue: str | None = None
    """Kueue local queue."""
    is_jobset: bool = False
    """Whether to create a JobSet, which restarts all workers when one fails or is preempted."""
    deadline_seconds: int = 24 * _HOUR_SECONDS
    search: tuple[str, ...] = ()
    """Options of `trainer tune`; each worker trains its share of the trials."""
    accuracy_at_least: float | None = None
    """Minimum accuracy on the held-out images, in [0, 1]; below it the job exits with code 4."""
    group_secret: str = field(default_factory=lambda: secrets.token_hex(32), repr=False, compare=False)
    """Random token with which connected workers prove to each other that they belong to this job."""

    @property
    def arguments(self) -> list[str]:
        """Arguments of the container's entry point."""
        accelerator = self.accelerator
        count = f":{accelerator.count}" if accelerator.kind == "gpu" else ""
        require = ["--require-accelerator", f"{accelerator.kind}{count}"] if accelerator.count else []
        minimum = self.accuracy_at_least
        accuracy = [] if minimum is None else ["--assert-accuracy-at-least", f"{minimum:g}"]
        return ["tune", *self.search, *require] if self.search else ["train", *require, *accuracy]

    @property
    def is_connected(self) -> bool:
        """Whether the workers train one model together and need a rendezvous."""
        return self.workers > 1 and not self.search

    @property
    def spec_text(self) -> str:
        """The spec for the container, without a run name, which comes from the job."""
        return dump_spec(self.spec.model_copy(update={"run_name": None}))

    def cost_per_hour(self) -> float | None:
        """Return the list price of all machines in US dollars per hour, None if unknown."""
        price = self.accelerator.price
        if price is None:
            return None
        machine_cost = price.spot if self.is_spot else price.on_demand
        return None if machine_cost is None else machine_cost * self.workers


def check_plan(plan: JobPlan) -> JobPlan:
    """Return `plan`. Raises UsageError if the platform would reject it or the run could not work there."""
    _check_names(plan)
    if plan.schedule is not None:
        check_schedule(plan.schedule, plan.time_zone)
    if plan.is_connected and plan.accelerator.kind == "tpu":
        raise UsageError(
            "A run on a TPU has one process, which uses all chips of the host.", "Use --workers 1.",
            f"{plan.workers} workers",
        )  # fmt: skip
    if plan.is_jobset and plan.schedule is not None:
        raise UsageError(
            "A CronJob creates Jobs, not JobSets.", "Omit --jobset or --schedule.",
            f"--jobset --schedule {plan.schedule!r}",
        )  # fmt: skip
    for uri in filter(is_bucket, locations_of(plan.spec)):
        split_uri(uri)
    if plan.platform == "docker":
        _check_engine(plan)
    else:
        _check_reachable(plan)
    if plan.accelerator.is_spot_only and not (plan.is_spot or plan.is_flexible):
        raise UsageError(
            f"{plan.accelerator.machine} is available only as a Spot VM or with flex-start.", "Add --spot.",
            f"{plan.accelerator} on demand",
        )  # fmt: skip
    if plan.platform == "gke":
        _check_grace(plan)
    size = len(plan.spec_text.encode())
    if size > _MAX_SPEC_BYTES:
        raise UsageError(
            "The spec is too long for the environment of a container.", "Shorten its lists.",
            f"{size:,} bytes, at most {_MAX_SPEC_BYTES:,}",
        )  # fmt: skip
    return plan


def _check_grace(plan: JobPlan) -> None:
    limit = SPOT_GRACE_SECONDS if plan.is_spot else _MAX_GRACE_SECONDS
    if plan.spec.train.grace_seconds > limit:
        raise UsageError(
            f"{'A Spot VM' if plan.is_spot else 'GKE'} gives a pod at most {limit} s to shut down.",
            "Lower train.grace_seconds.",
            f"{plan.spec.train.grace_seconds:g} s",
        )


def check_schedule(schedule: str, time_zone: str) -> None:
    """Raise UsageError for a schedule that never fires, or is invalid in Kubernetes or Cloud Scheduler."""
    from datetime import datetime
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

    try:
        zone = ZoneInfo(time_zone)
        if time_zone not in available_timezones() - {"localtime", "posixrules", "Factory"}:
            raise ZoneInfoNotFoundError(time_zone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise UsageError(
            "There is no such time zone.",
            "Use a name such as Etc/UTC or America/Sao_Paulo.",
            f"{time_zone!r}",
        ) from None
    try:
        _check_cron_fields(schedule)
        next(CronSim(schedule, datetime.now(zone)))
    except (CronSimError, StopIteration) as error:
        raise UsageError(
            "The schedule is invalid.",
            "Use the five fields of cron: minute, hour, day, month and day of the week, such as 0 3 * * 1.",
            f"{schedule!r}: {error if str(error) else 'it never fires'}",
        ) from None


def _check_cron_fields(schedule: str) -> None:
    """Raise CronSimError for fields that Kubernetes or Cloud Scheduler rejects or interprets differently."""
    fields = schedule.split()
    if len(fields) != len(["minute", "hour", "day", "month", "weekday"]):
        raise CronSimError("wrong number of fields")
    names = [r"\d+"] * 3 + [r"(\d+|[A-Za-z]{3})", r"([0-6]|[A-Za-z]{3})"]
    for text, name in zip(fields, names, strict=True):
        part = rf"(\*|{name}(-{name})?)(/\d+)?"
        if not re.fullmatch(rf"{part}(,{part})*", text):
            raise CronSimError(f"{text} is not a number, a range, a list or *; Sunday is 0")


def with_price(plan: JobPlan) -> JobPlan:
    """Return `plan` with the list price in its spec, for later comparisons; a price in the spec is kept."""
    price = None if plan.platform == "docker" else plan.cost_per_hour()
    if price is None or plan.spec.publish.usd_per_hour is not None:
        return plan
    publish = plan.spec.publish.model_copy(update={"usd_per_hour": float(f"{price:.6g}")})
    return replace(plan, spec=plan.spec.model_copy(update={"publish": publish}))


def make_name(spec: RunSpec) -> str:
    """Return the run name of the spec, else the recipe's name with six random hex digits."""
    if spec.run_name is not None:
        return spec.run_name
    base = re.sub(r"[^a-z0-9]+", "-", (spec.recipe or "trainer").lower()).strip("-") or "trainer"
    return f"{base[:30].rstrip('-')}-{secrets.token_hex(3)}"


def describe_plan(plan: JobPlan, where: str) -> list[str]:
    """Return the lines that summarize the plan before confirmation; `where` names a cluster or an engine."""
    workers = f"{plan.workers} workers, " if plan.workers > 1 else ""
    search, per_worker = "search, " * bool(plan.search), " each" * (plan.workers > 1)
    spot = ", spot" if plan.is_spot else ""
    kind = "CronJob" if plan.schedule and plan.platform == "gke" else "JobSet" if plan.is_jobset else "job"
    schedule = f", at {plan.schedule} ({plan.time_zone})" if plan.schedule else ""
    queue = f", queue {plan.queue}" if plan.queue else ""
    # Without an accelerator the machine type is set only on Vertex AI; elsewhere any machine may run it.
    has_machine_type = plan.platform == "vertex" or (plan.platform == "gke" and plan.accelerator.count > 0)
    machine = f" ({plan.accelerator.machine}{spot})" if has_machine_type else spot
    accelerator = f"{plan.accelerator}{per_worker}{machine}"
    run = f"{plan.spec.output.rstrip('/')}/{'<name of each job>' if plan.schedule else plan.name}"
    facts = {
        "plan": f"{kind} {plan.name}, {search}{workers}{accelerator}{schedule}{queue}",
        "where": where,
        "image": plan.image,
        "output": shown_address(run),
        "cost": _describe_cost(plan),
        "note": plan.accelerator.note,
    }
    return [f"{name:<{_WIDTH}}{text}" for name, text in facts.items() if text]


def _describe_cost(plan: JobPlan) -> str:
    if plan.platform == "docker":
        return ""
    cost, hours = plan.cost_per_hour(), plan.deadline_seconds / _HOUR_SECONDS
    price = plan.accelerator.price
    if cost is None or price is None:
        return f"unknown: there is no price for {plan.accelerator}; set one with --prices FILE"
    kind = "spot " if plan.is_spot else "on demand, flex-start costs less; " if plan.is_flexible else ""
    fee = ", plus the fee of Vertex AI" if plan.platform == "vertex" else ""
    source = ", ".join(filter(None, (price.source, price.region)))
    return f"about {cost:,.2f} USD per hour ({kind}{source}{fee}); {_describe_max_cost(plan, cost * hours)}"


def _describe_max_cost(plan: JobPlan, cost: float) -> str:
    """Return the maximum cost of a job as text; `cost` is that of one full deadline."""
    deadline = f"deadline of {plan.deadline_seconds / _HOUR_SECONDS:g} h"
    if plan.is_jobset:
        return (
            f"at most {cost * (1 + RETRIES):,.2f}, because the {deadline} restarts with each of {RETRIES} "
            "restarts, and more if machines are preempted"
        )
    return f"at most {cost:,.2f} with its {deadline}{', for each job' if plan.schedule else ''}"


def check_image_name(name: str) -> None:
    """Raise UsageError for an image name that engines and registries reject."""
    if not re.fullmatch(_IMAGE, name):
        raise UsageError(
            "The image name is invalid.",
            "Use REGISTRY/PROJECT/NAME:TAG, with lowercase letters in all but the tag.",
            f"{name!r}",
        )


def _check_names(plan: JobPlan) -> None:
    check_image_name(plan.image)
    max_length = _MAX_CRON_JOB_LENGTH if plan.schedule else _MAX_NAME_LENGTH
    if plan.is_jobset:
        max_length -= len(f"-{REPLICATED_JOB}-0-abcde")  # the suffix of the pod names
    if plan.workers > 1 or plan.is_jobset:
        max_length -= len(f"-{plan.workers - 1}")
    if not re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", plan.name) or len(plan.name) > max_length:
        raise UsageError(
            "The name of the job is invalid.",
            f"Choose another with --run-name: at most {max_length} lowercase letters, digits and hyphens, "
            "beginning with a letter.",
            f"{plan.name!r}",
        )


def _check_engine(plan: JobPlan) -> None:
    """Raise UsageError for options that a Docker engine does not support."""
    for option, is_used in (
        ("--workers", plan.workers > 1), ("--schedule", plan.schedule is not None), ("--spot", plan.is_spot),
        ("a TPU", plan.accelerator.kind == "tpu"),
    ):  # fmt: skip
        if is_used:
            raise UsageError(
                f"Docker does not support {option}: one engine runs one container, on its own CPU or GPUs.",
                "Omit it, or submit to gke or vertex.",
                f"{option} for docker",
            )
    for uri in locations_of(plan.spec):
        if without_scheme(uri).rstrip("/") in (folder.rstrip("/") for folder in _IMAGE_FOLDERS):
            raise UsageError(
                "This folder cannot be mounted, because the image uses it.", "Choose a folder below it.", uri
            )


def locations_of(spec: RunSpec) -> dict[str, bool]:
    """Return every path and URI that a run of `spec` uses, and whether the run writes to it."""
    inputs = [uri for uri, _ in _sources_of(spec).values()]
    start = spec.train.start_from.rstrip("/")
    # A pointer is resolved only by the job and refers to a sibling folder, so use their parent.
    start = start.removesuffix(f"/{LATEST}").removesuffix(f"/{CHAMPION}") or "/"
    if _starts_from_run(spec) and not f"{start}/".startswith(f"{spec.output.rstrip('/')}/"):
        inputs.append(start)
    return dict.fromkeys(inputs, False) | {spec.output: True}


def _sources_of(spec: RunSpec) -> dict[str, tuple[str, str]]:
    """Return (URI, option that changes it) of images and weights, by the key of the setting."""
    sources = {"data.source": (spec.data.source, "--data")}
    for key, uri in (("data.exclude", spec.data.exclude), ("data.relabel", spec.data.relabel)):
        if uri:
            sources[key] = (uri, f"--set {key}=")
    if spec.publish.test_data:
        sources["publish.test_data"] = (spec.publish.test_data, "--set publish.test_data=")
    if isinstance(spec.model, PretrainedSpec) and spec.model.weights not in (DEFAULT_WEIGHTS, NO_WEIGHTS):
        sources["model.weights"] = (spec.model.weights, "--set model.weights=")
    return sources


def _starts_from_run(spec: RunSpec) -> bool:
    return spec.train.start_from not in (SCRATCH, LATEST, CHAMPION)


def _check_reachable(plan: JobPlan) -> None:
    """Raise UsageError for local paths and images that the job cannot access."""
    if not is_bucket(plan.spec.output):
        raise UsageError(
            "The output is a local folder, which is lost when the job's machine is deleted.",
            "Write to a bucket with --output gs://BUCKET/RUNS.",
            shown_address(plan.spec.output),
        )
    start = plan.spec.train.start_from
    if _starts_from_run(plan.spec) and not is_bucket(start):
        raise UsageError(
            "The job cannot access folders of this machine.",
            "Set train.start_from to a run in a bucket, such as gs://BUCKET/RUNS/NAME.",
            shown_address(start),
        )
    for key, (source, option) in _sources_of(plan.spec).items():
        _check_source(key, source, option)
    if "/" not in plan.image:
        raise UsageError(
            "The job cannot access images of this machine.",
            "Push the image with `trainer image push`, and set its name in the registry with --image.",
            plan.image,
        )


def _check_source(key: str, source: str, option: str) -> None:
    content = "the file" if key == "model.weights" else "the data"
    is_embedded = source.startswith("embedded:") and key != "model.weights"
    received = f"{key} {shown_address(source)}"
    if not (source.lower().startswith((GS, "https://")) or is_embedded):
        raise UsageError(
            "The job cannot access folders of this machine.",
            f"Put {content} in a bucket and set its gs:// URI with {option}.",
            received,
        )
    if shown_address(source) != source:
        raise UsageError(
            "The URL contains a password or a query, which everyone who can view the job could read.",
            f"Put {content} in a bucket.",
            received,
        )
