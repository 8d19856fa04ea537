"""Table of accelerators: their names on each platform, machine types and prices.

A name such as `nvidia-l4:2`, `tpu-v5e:2x4` or `cpu` yields an `Accelerator`. An unknown name is an error
before anything is built or created.
"""

from __future__ import annotations

import math
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
        size = self.topology or str(self.count or "")
        return f"{self.name}:{size}" if size else self.name


def find_accelerator(text: str, prices: Path | None = None) -> Accelerator:
    """Return the accelerator that `text` names; without a count, the table's first machine size.

    `prices` is a YAML file in the form of the table; its prices override those of the table. Raises
    UsageError with the available names if `text` is unknown, and if `prices` is invalid.
    """
    table = _load_table(prices)
    name, _, size = text.strip().partition(":")
    if name not in table:
        raise UsageError(*_unknown_name_message(name, list(table)), f"{text!r}")
    entry = table[name]
    machines = entry["machines"]
    size = size or next(iter(machines))
    if size not in machines:
        available = ", ".join(f"{name}:{option}" for option in machines if option) or name
        raise UsageError(
            f"There is no machine with {name}:{size}.",
            f"Available: {available}.",
            f"{text!r}",
        )
    machine = machines[size]
    return Accelerator(
        name=name,
        count=_chip_count(size),
        topology=size if "x" in size else "",
        gke="" if name == "cpu" else entry.get("gke", name),
        vertex=entry.get("vertex"),
        machine=machine["machine"],
        memory_gib=entry["memory_gib"],
        price=_price_of(machine),
        is_spot_only=machine.get("spot_only", False),
        quota=entry.get("quota", ""),
        compute_quota=entry.get("compute_quota", ""),
        note=entry.get("note", ""),
    )


def _unknown_name_message(name: str, names: list[str]) -> tuple[str, str]:
    """Return problem and remedy: all accelerators that `name` abbreviates, else the most similar name."""
    problem = f"There is no accelerator {name!r}."
    matching = [candidate for candidate in names if name and _is_abbreviation(name.lower(), candidate)]
    similar = get_close_matches(name, names, 1, 0.4)
    if matching:
        return problem, f"Did you mean {' or '.join(matching)}?"
    suggestion = f"Did you mean {similar[0]}? " if similar else ""
    return problem, f"{suggestion}Available: {', '.join(names)}."


def _is_abbreviation(text: str, name: str) -> bool:
    """Return whether `name`, or a part of it after a hyphen, begins with `text`: a100 of nvidia-a100-80gb."""
    return f"-{text}" in f"-{name}"


def _chip_count(size: str) -> int:
    return math.prod(map(int, size.split("x"))) if size else 0


def _price_of(machine: Mapping[str, Any]) -> Price | None:
    if "on_demand" not in machine:
        return None
    source = machine.get("source", f"list price of {PRICE_DATE}")
    return Price(machine.get("region", ""), float(machine["on_demand"]), machine.get("spot"), source)


def _load_table(prices: Path | None) -> dict[str, Any]:
    table: dict[str, Any] = yaml.safe_load((files("trainer.launch") / _TABLE).read_text(encoding="utf-8"))
    for name, entry in _read_prices(prices).items() if prices else ():
        for size, machine in entry.machines.items():
            if size not in table.get(name, {"machines": {}})["machines"]:
                raise _invalid_prices(prices, f"{name}:{size} is not in the table")
            table[name]["machines"][size] |= machine.model_dump() | {"source": f"price of {prices}"}
    return table


class _Machine(BaseModel, extra="forbid", allow_inf_nan=False):
    on_demand: NonNegativeFloat
    spot: NonNegativeFloat | None = None
    region: str = ""


class _Entry(BaseModel, extra="forbid"):
    machines: dict[str, _Machine]


def _read_prices(path: Path) -> dict[str, _Entry]:
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
        return TypeAdapter(dict[str, _Entry]).validate_python(value)
    except (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError) as error:
        raise _invalid_prices(path, " ".join(str(error).split())[:200]) from None
    except ValidationError as error:
        first = error.errors()[0]
        raise _invalid_prices(path, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def _invalid_prices(path: Path | None, reason: str) -> UsageError:
    return UsageError(
        f"The price file cannot be used: {reason}.",
        "Write it as nvidia-l4: {machines: {'1': {on_demand: 0.9, spot: 0.4}}}.",
        path,
    )
