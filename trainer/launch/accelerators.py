"""Table of accelerators: their names on each platform, machine types and prices.

A name such as `nvidia-l4:2`, `tpu-v5e:2x4` or `cpu` yields an `Accelerator`. An unknown name is an error
before anything is built or created.
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

from trainer.errors import UsageError

_TABLE = "accelerators.yaml"
PRICE_DATE = "2026-11-27"
"""Date of the table's prices."""


@dataclass(frozen=True)
class Price:
    """List prices of one machine with its accelerators, in US dollars per hour."""

    region: str
    on_demand: float
    spot: float | None
    source: str
    """Source and date of the price, for messages."""


@dataclass(frozen=True)
class Accelerator:
    """Accelerators of one machine of a run."""

    name: str
    """cpu, nvidia-... or tpu-..., without the count."""
    count: int
    """Number of GPUs or of TPU chips; 0 for cpu."""
    topology: str
    """TPU topology such as 2x4; otherwise empty."""
    gke: str
    """Value of GKE's accelerator node label; empty for cpu."""
    vertex: str | None
    """Vertex AI's acceleratorType, empty for cpu; None if Vertex AI does not offer it."""
    machine: str
    """Compute Engine machine type."""
    memory_gib: int
    """Memory of each accelerator in GiB; 0 for cpu."""
    price: Price | None
    """None if unknown."""
    is_spot_only: bool = False
    """Whether it is not available on demand."""
    quota: str = ""
    """Vertex AI quota name, such as nvidia_l4_gpus; empty if unknown."""
    compute_quota: str = ""
    """Regional Compute Engine quota name, such as NVIDIA_L4_GPUS; empty if unknown."""
    note: str = ""
    """Note to show before a job is created; empty if there is none."""

    @property
    def kind(self) -> str:
        """'cpu', 'gpu' or 'tpu', as in `--require-accelerator` and the image variants."""
        return {"cpu": "cpu", "nvidia": "gpu", "tpu": "tpu"}[self.name.partition("-")[0]]

    def __str__(self) -> str:
        many = self.topology or str(self.count or "")
        return f"{self.name}:{many}" if many else self.name


def find_accelerator(text: str, prices: Path | None = None) -> Accelerator:
    """Return the accelerator that `text` names; without a count, the table's first machine size.

    `prices` is a YAML file in the form of the table; its prices override those of the table. Raises
    UsageError with the available names if `text` is unknown, and if `prices` is invalid.
    """
    table = _table(prices)
    name, _, many = text.strip().partition(":")
    if name not in table:
        near = get_close_matches(name, table, 1, 0.4)
        raise UsageError(
            f"There is no accelerator {name!r}{f'; did you mean {near[0]}?' if near else '.'} There are "
            f"{', '.join(table)}.",
            received=f"{text!r}",
        )
    entry = table[name]
    machines = entry["machines"]
    many = many or next(iter(machines))
    if many not in machines:
        there = ", ".join(f"{name}:{each}" for each in machines if each) or name
        raise UsageError(f"{name} comes as {there} on one machine.", received=f"{text!r}")
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
        f"{{machines: {{'1': {{on_demand: 0.9, spot: 0.4}}}}}}.",
        received=prices,
    )
