"""The one table of accelerators: what each is called where, on which machine it comes, and what that costs.

In: a name as `nvidia-l4:2`, `tpu-v5e:2x4` or `cpu`. Out: an `Accelerator`; what doesn't exist is an error
before anything is built or sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, NonNegativeFloat, TypeAdapter, ValidationError

from trainer.exits import UsageError

_TABLE = "accelerators.yaml"
PRICE_DATE = "2026-11-27"
"""When the table's prices were read."""


@dataclass(frozen=True)
class Price:
    """List prices of one machine with its accelerators, US dollars an hour."""

    region: str
    on_demand: float
    spot: float | None
    source: str
    """In words: where it is from, and of when."""


@dataclass(frozen=True)
class Accelerator:
    """What one machine of a run has."""

    name: str
    """cpu, nvidia-... or tpu-..., without the number."""
    count: int
    """GPUs, or chips of a TPU; 0 for cpu."""
    topology: str
    """Of a TPU, as 2x4; else empty."""
    gke: str
    """The value of GKE's label for it; empty for cpu."""
    vertex: str | None
    """Vertex AI's acceleratorType, empty for cpu; None where Vertex AI doesn't offer it."""
    machine: str
    """Compute Engine's machine type."""
    memory_gib: int
    """Of each accelerator; 0 for cpu."""
    price: Price | None
    """None if it isn't known."""
    is_spot_only: bool = False
    """Whether there is none on demand."""
    quota: str = ""
    """Of Vertex AI, as nvidia_l4_gpus; empty if it isn't known."""
    compute_quota: str = ""
    """Of Compute Engine's regions, as NVIDIA_L4_GPUS; empty if it isn't known."""
    note: str = ""
    """What a user should know before a job is sent; empty for nothing."""

    @property
    def kind(self) -> str:
        """'cpu', 'gpu' or 'tpu', as `--require-accelerator` and the image's variants have it."""
        return {"cpu": "cpu", "nvidia": "gpu", "tpu": "tpu"}[self.name.partition("-")[0]]

    def __str__(self) -> str:
        many = self.topology or str(self.count or "")
        return f"{self.name}:{many}" if many else self.name


def find_accelerator(text: str, prices: Path | None = None) -> Accelerator:
    """Return the accelerator that `text` names; one of several is meant without a number.

    `prices` is a file in the table's form, whose entries count instead. Raises UsageError for what there is
    not, with what there is.
    """
    table = _table(prices)
    name, _, many = text.strip().partition(":")
    if name not in table:
        near = get_close_matches(name, table, 1, 0.4)
        raise UsageError(
            f"There is no accelerator {name!r}{f'; did you mean {near[0]}?' if near else '.'} There are "
            f"{', '.join(table)}. Received: {text!r}"
        )
    entry = table[name]
    machines = entry["machines"]
    many = many or next(iter(machines))
    if many not in machines:
        there = ", ".join(f"{name}:{each}" for each in machines if each) or name
        raise UsageError(f"{name} comes as {there} on one machine. Received: {text!r}")
    topology = many if "x" in many else ""
    found = machines[many]
    return Accelerator(
        name=name,
        count=_chips(many),
        topology=topology,
        gke="" if name == "cpu" else entry.get("gke", name),
        vertex=entry.get("vertex"),
        machine=found["machine"],
        memory_gib=entry["memory_gib"],
        price=_price(found),
        is_spot_only=found.get("spot_only", False),
        quota=entry.get("quota", ""),
        compute_quota=entry.get("compute_quota", ""),
        note=entry.get("note", ""),
    )


def _chips(many: str) -> int:
    count = 1
    for side in filter(None, many.split("x")):
        count *= int(side)
    return count if many else 0


def _price(machine: Mapping[str, Any]) -> Price | None:
    if "on_demand" not in machine:
        return None
    source = machine.get("source", f"list price of {PRICE_DATE}")
    return Price(machine.get("region", ""), float(machine["on_demand"]), machine.get("spot"), source)


def _table(prices: Path | None) -> dict[str, Any]:
    table: dict[str, Any] = yaml.safe_load((files("trainer.launch") / _TABLE).read_text(encoding="utf-8"))
    for name, entry in _given(prices).items() if prices else ():
        for many, machine in entry.machines.items():
            if many not in table.get(name, {"machines": {}})["machines"]:
                raise _no_prices(prices, f"{name}:{many} is not in the table")
            table[name]["machines"][many] |= machine.model_dump() | {"source": f"price of {prices}"}
    return table


class _Machine(BaseModel, extra="forbid", allow_inf_nan=False):
    on_demand: NonNegativeFloat
    spot: NonNegativeFloat | None = None
    region: str = ""


class _Entry(BaseModel, extra="forbid"):
    machines: dict[str, _Machine]


def _given(prices: Path) -> dict[str, _Entry]:
    try:
        given = yaml.safe_load(prices.read_text(encoding="utf-8"))
        return TypeAdapter(dict[str, _Entry]).validate_python(given)
    except (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError) as error:
        raise _no_prices(prices, " ".join(str(error).split())[:200]) from None
    except ValidationError as error:
        first = error.errors()[0]
        raise _no_prices(prices, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def _no_prices(prices: Path | None, why: str) -> UsageError:
    return UsageError(
        f"The prices can't be used: {why}. They are given as nvidia-l4: "
        f"{{machines: {{'1': {{on_demand: 0.9, spot: 0.4}}}}}}. Received: {prices}"
    )
