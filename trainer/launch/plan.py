"""Plan of a job: what is created where, at what cost, validated before anything is built or created.

A `JobPlan` combines a resolved spec with the options of the command line. Each platform creates its objects
from it, and `describe_plan` returns the summary for confirmation.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, field, replace
from typing import Literal

from trainer.errors import UsageError
from trainer.launch.accelerators import Accelerator
from trainer.launch.schedule import check_schedule
from trainer.sanitize import shown_address
from trainer.spec import PretrainedSpec, RunSpec, dump_spec
from trainer.spec.pretrained import DEFAULT_WEIGHTS, NO_WEIGHTS
from trainer.spec.schema import CHAMPION, LATEST, SCRATCH
from trainer.storage.store import GS, is_bucket, split_uri, without_scheme

ProcessInfo = Literal["docker", "gke", "vertex"]

SPEC = "TRAINER_SPEC"
"""Environment variable with the spec as YAML in the container."""
RUN_NAME = "TRAINER_RUN_NAME"
_LONGEST_SPEC_BYTES = 100_000
"""Limit for one environment variable: Linux allows 128 KiB, Vertex AI less."""
_LONGEST_NAME = 63
RETRIES = 3
"""Retries for exit codes of policy Count; ignored ones, such as a preemption, do not count."""
GROUP_LABEL = "trainer/group"
"""Label of all pods of a job; its value is the name of the job."""
REPLICATED_JOB = "worker"
"""Name of the only job in a JobSet."""
_LONGEST_CRON_JOB = 52
"""Shorter because Kubernetes appends a number to it."""
_IMAGE = r"([\w.-]+(:\d+)?/)?[a-z0-9]+([._/-]+[a-z0-9]+)*(:[\w][\w.-]{0,127})?(@sha256:[0-9a-f]{64})?"
"""Image names that engines and registries accept."""
_IMAGES_OWN = (
    "/", "/opt", "/usr", "/etc", "/bin", "/sbin", "/lib", "/lib64", "/proc", "/sys", "/dev", "/tmp",
)  # fmt: skip
"""Folders of the container that cannot be mount points."""
_HOUR_SECONDS = 3600
SPOT_GRACE_SECONDS = 15
"""Grace period of GKE for the pods of a Spot VM."""
END_SECONDS = 20
"""Time for a process to exit after its grace period."""
_LONGEST_GRACE_SECONDS = 600 - END_SECONDS
"""GKE waits at most ten minutes for the pods of a node that is scaled down."""
_WIDTH = 11


@dataclass(frozen=True)
class JobPlan:
    """One job, or a schedule of jobs."""

    place: ProcessInfo
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
        wanted = self.accelerator
        many = f":{wanted.count}" if wanted.kind == "gpu" else ""
        require = ["--require-accelerator", f"{wanted.kind}{many}"] if wanted.count else []
        accuracy = self.accuracy_at_least
        claim = [] if accuracy is None else ["--assert-accuracy-at-least", f"{accuracy:g}"]
        return ["tune", *self.search, *require] if self.search else ["train", *require, *claim]

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
        each = None if price is None else price.spot if self.is_spot else price.on_demand
        return None if each is None else each * self.workers


def check_plan(plan: JobPlan) -> JobPlan:
    """Return `plan`. Raises UsageError if the platform would reject it or the run could not work there."""
    _check_names(plan)
    if plan.schedule is not None:
        check_schedule(plan.schedule, plan.time_zone)
    if plan.is_connected and plan.accelerator.kind == "tpu":
        raise UsageError(
            "A TPU is trained on by one process, which reaches all its chips; leave --workers at 1.",
            received=f"{plan.workers} workers",
        )
    if plan.is_jobset and plan.schedule is not None:
        raise UsageError(
            "A CronJob makes jobs and no JobSets; leave --jobset away.",
            received=f"--jobset --schedule {plan.schedule!r}",
        )
    for place in filter(is_bucket, places_of(plan.spec)):
        split_uri(place)
    if plan.place == "docker":
        _check_engine(plan)
    else:
        _check_reachable(plan)
    if plan.accelerator.is_spot_only and not (plan.is_spot or plan.is_flexible):
        raise UsageError(
            f"{plan.accelerator.machine} comes as a spot machine or by flex-start only; add --spot.",
            received=f"{plan.accelerator} on demand",
        )
    if plan.place == "gke":
        _check_grace(plan)
    if len(plan.spec_text.encode()) > _LONGEST_SPEC_BYTES:
        raise UsageError(
            "The spec is too long to be sent along; shorten its lists.",
            received=f"{len(plan.spec_text):,} characters, {_LONGEST_SPEC_BYTES:,} at most",
        )
    return plan


def _check_grace(plan: JobPlan) -> None:
    longest = SPOT_GRACE_SECONDS if plan.is_spot else _LONGEST_GRACE_SECONDS
    if plan.spec.train.grace_seconds > longest:
        raise UsageError(
            f"{'A spot machine' if plan.is_spot else 'GKE'} gives a pod {longest} s before it is taken away; "
            f"lower train.grace_seconds.",
            received=f"{plan.spec.train.grace_seconds:g} s",
        )


def with_price(plan: JobPlan) -> JobPlan:
    """Return `plan` with the list price in its spec, for later comparisons; a price in the spec is kept."""
    price = None if plan.place == "docker" else plan.cost_per_hour()
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
    many = f"{plan.workers} workers, " if plan.workers > 1 else ""
    search, each = "search, " * bool(plan.search), " each" * (plan.workers > 1)
    spot = ", spot" if plan.is_spot else ""
    kind = "CronJob" if plan.schedule and plan.place == "gke" else "JobSet" if plan.is_jobset else "job"
    when = f", at {plan.schedule} ({plan.time_zone})" if plan.schedule else ""
    queue = f", queue {plan.queue}" if plan.queue else ""
    # Without an accelerator the machine type is set only on Vertex AI; elsewhere any machine may run it.
    is_chosen = plan.place == "vertex" or (plan.place == "gke" and plan.accelerator.count > 0)
    machine = f" ({plan.accelerator.machine}{spot})" if is_chosen else spot
    accelerator = f"{plan.accelerator}{each}{machine}"
    run = f"{plan.spec.output.rstrip('/')}/{'<name of each job>' if plan.schedule else plan.name}"
    facts = {
        "plan": f"{kind} {plan.name}, {search}{many}{accelerator}{when}{queue}",
        "where": where,
        "image": plan.image,
        "output": shown_address(run),
        "cost": _cost(plan),
        "note": plan.accelerator.note,
    }
    return [f"{name:<{_WIDTH}}{text}" for name, text in facts.items() if text]


def _cost(plan: JobPlan) -> str:
    if plan.place == "docker":
        return ""
    cost, hours = plan.cost_per_hour(), plan.deadline_seconds / _HOUR_SECONDS
    if cost is None or plan.accelerator.price is None:
        return f"not known: no price of {plan.accelerator}; --prices FILE gives one"
    kind = "spot " if plan.is_spot else "on demand, flex-start costs less; " if plan.is_flexible else ""
    fee = ", and Vertex AI's fee" if plan.place == "vertex" else ""
    of = (plan.accelerator.price.source, plan.accelerator.price.region)
    source = ", ".join(filter(None, of))
    return f"about {cost:,.2f} USD an hour ({kind}{source}{fee}); {_most(plan, cost * hours)}"


def _most(plan: JobPlan, cost: float) -> str:
    """Return the maximum cost of a job as text; `cost` is that of one full deadline."""
    deadline = f"its {plan.deadline_seconds / _HOUR_SECONDS:g} h deadline"
    if plan.is_jobset:
        return (
            f"at most {cost * (1 + RETRIES):,.2f}, as {deadline} begins again with each of {RETRIES} "
            "restarts, and more if machines are taken away"
        )
    return f"at most {cost:,.2f} at {deadline}{' each time' if plan.schedule else ''}"


def check_image_name(name: str) -> None:
    """Raise UsageError for an image name that engines and registries reject."""
    if not re.fullmatch(_IMAGE, name):
        raise UsageError(
            "An image is named as REGISTRY/PROJECT/NAME:TAG, with small letters in all but the tag.",
            received=f"{name!r}",
        )


def _check_names(plan: JobPlan) -> None:
    check_image_name(plan.image)
    longest = _LONGEST_CRON_JOB if plan.schedule else _LONGEST_NAME
    if plan.is_jobset:
        longest -= len(f"-{REPLICATED_JOB}-0-abcde")  # the suffix of the pod names
    if plan.workers > 1 or plan.is_jobset:
        longest -= len(f"-{plan.workers - 1}")
    if not re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", plan.name) or len(plan.name) > longest:
        raise UsageError(
            f"A job's name has small letters, digits and -, begins with a letter, and is at most {longest} "
            f"characters long here; --run-name gives another.",
            received=f"{plan.name!r}",
        )


def _check_engine(plan: JobPlan) -> None:
    """Raise UsageError for options that a Docker engine does not support."""
    for option, is_given in (
        ("--workers", plan.workers > 1), ("--schedule", plan.schedule is not None), ("--spot", plan.is_spot),
        ("a TPU", plan.accelerator.kind == "tpu"),
    ):  # fmt: skip
        if is_given:
            raise UsageError(
                f"One engine runs one container, now, with its own CPU or GPUs; {option} is for gke and "
                f"vertex.",
                received=f"{option} for docker",
            )

    for place in places_of(plan.spec):
        if without_scheme(place).rstrip("/") in (each.rstrip("/") for each in _IMAGES_OWN):
            raise UsageError(
                "In the container this folder is the image's own; give one below it.", received=place
            )


def places_of(spec: RunSpec) -> dict[str, bool]:
    """Return every path and URI that a run of `spec` uses, and whether the run writes to it."""
    read = [uri for uri, _ in _sources_of(spec).values()]
    start = spec.train.start_from.rstrip("/")
    # A pointer is resolved only by the job and refers to a sibling folder, so use their parent.
    start = start.removesuffix(f"/{LATEST}").removesuffix(f"/{CHAMPION}") or "/"
    if _names_a_run(spec) and not f"{start}/".startswith(f"{spec.output.rstrip('/')}/"):
        read.append(start)
    return dict.fromkeys(read, False) | {spec.output: True}


def _sources_of(spec: RunSpec) -> dict[str, tuple[str, str]]:
    """Return (URI, option that changes it) of images and weights, by the key of the setting."""
    sources = {"data.source": (spec.data.source, "--data")}
    if spec.publish.test_data:
        sources["publish.test_data"] = (spec.publish.test_data, "--set publish.test_data=")
    if isinstance(spec.model, PretrainedSpec) and spec.model.weights not in (DEFAULT_WEIGHTS, NO_WEIGHTS):
        sources["model.weights"] = (spec.model.weights, "--set model.weights=")
    return sources


def _names_a_run(spec: RunSpec) -> bool:
    return spec.train.start_from not in (SCRATCH, LATEST, CHAMPION)


def _check_reachable(plan: JobPlan) -> None:
    """Raise UsageError for local paths and images that the job cannot access."""
    if not is_bucket(plan.spec.output):
        raise UsageError(
            "What the job writes to a folder of its machine is lost when it ends; --output gs://BUCKET/RUNS "
            "keeps it.",
            received=shown_address(plan.spec.output),
        )
    if _names_a_run(plan.spec) and not is_bucket(plan.spec.train.start_from):
        raise UsageError(
            "The job can't see the folders of this machine; train.start_from names a run in a bucket as "
            "gs://BUCKET/RUNS/NAME.",
            received=shown_address(plan.spec.train.start_from),
        )
    for key, (source, option) in _sources_of(plan.spec).items():
        what = "the file" if key == "model.weights" else "the data"
        is_embedded = source.startswith("embedded:") and key != "model.weights"
        if not (source.lower().startswith((GS, "https://")) or is_embedded):
            raise UsageError(
                f"The job can't see the folders of this machine; put {what} in a bucket and give its gs:// "
                f"address with {option}.",
                received=f"{key} {shown_address(source)}",
            )
        if shown_address(source) != source:
            raise UsageError(
                "An address with a password or a query could be read by everyone who may look at the job; "
                f"put {what} in a bucket.",
                received=f"{key} {shown_address(source)}",
            )
    if "/" not in plan.image:
        raise UsageError(
            "The job can't see the images of this machine; push it, and give its name in the registry with "
            "--image.",
            received=plan.image,
        )
