"""Accelerator table, and price files that override its prices."""

from __future__ import annotations

import math
from importlib.resources import files
from pathlib import Path

import pytest
import yaml

from trainer.errors import UsageError
from trainer.launch.accelerators import find_accelerator

TABLE = yaml.safe_load((files("trainer.launch") / "accelerators.yaml").read_text())
ALL_NAMES = [
    f"{name}:{many}" if many else name for name, entry in TABLE.items() for many in entry["machines"]
]


@pytest.mark.parametrize("text", ALL_NAMES)
def test_every_table_entry_is_consistent(text: str) -> None:
    accelerator = find_accelerator(text)
    assert str(accelerator) == text
    assert accelerator.kind in ("cpu", "gpu", "tpu")
    assert (accelerator.count > 0) == (accelerator.kind != "cpu") == bool(accelerator.gke)
    assert bool(accelerator.topology) == (accelerator.kind == "tpu")
    if accelerator.topology:
        assert accelerator.count == math.prod(map(int, accelerator.topology.split("x")))
    if accelerator.price is not None:
        assert accelerator.price.region
        assert accelerator.price.spot is not None
        assert 0 < accelerator.price.spot < accelerator.price.on_demand


def test_name_without_count_selects_smallest_machine() -> None:
    assert str(find_accelerator("nvidia-l4")) == "nvidia-l4:1"
    assert str(find_accelerator("tpu-v5e")) == "tpu-v5e:1x1"
    assert find_accelerator("cpu").vertex == ""
    assert find_accelerator("tpu-v6e").vertex is None
    assert find_accelerator("tpu-v5e").gke == "tpu-v5-lite-podslice"
    assert str(find_accelerator("nvidia-rtx-pro-6000")) == "nvidia-rtx-pro-6000:1"
    assert "no kernels" in find_accelerator("nvidia-rtx-pro-6000").note


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nvidia-l5", "Did you mean nvidia-l4?"),
        ("abacus", "Available: cpu, nvidia-tesla-t4"),
        ("nvidia-l4:3", "Available: nvidia-l4:1, nvidia-l4:2, nvidia-l4:4, nvidia-l4:8."),
        ("nvidia-h200-141gb:1", "Available: nvidia-h200-141gb:8."),
        ("tpu-v5e:4x4", "Available: tpu-v5e:1x1"),
        ("cpu:2", "There is no machine with cpu:2. Available: cpu."),
        ("", "There is no accelerator ''"),
        (
            "a100",
            "There is no accelerator 'a100'. Did you mean nvidia-tesla-a100 or nvidia-a100-80gb? Received",
        ),
        ("A100:8", "Did you mean nvidia-tesla-a100 or nvidia-a100-80gb? Received: 'A100:8'"),
        ("tpu", "Did you mean tpu-v5e or tpu-v6e? Received"),
        ("nvidia-h", "Did you mean nvidia-h100-80gb or nvidia-h200-141gb? Received"),
    ],
)
def test_unknown_accelerator_is_rejected_with_available_ones(text: str, words: str) -> None:
    with pytest.raises(UsageError) as raised:
        find_accelerator(text)
    assert words in str(raised.value)
    assert "Received: " in str(raised.value)


def test_price_file_overrides_list_prices(tmp_path: Path) -> None:
    path = tmp_path / "prices.yaml"
    path.write_text("nvidia-l4: {machines: {'1': {on_demand: 2, spot: 1.5, region: mars-1}}}\n")
    price = find_accelerator("nvidia-l4:1", path).price
    assert price is not None
    assert (price.region, price.on_demand, price.spot) == ("mars-1", 2.0, 1.5)
    assert price.source == f"price of {path}"  # instead of the date of the built-in list
    assert find_accelerator("nvidia-l4:2", path).price == find_accelerator("nvidia-l4:2").price


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "No such file"),
        ("{", "expected"),
        ("[]", "valid dictionary"),
        ("nvidia-l4: 3", "nvidia-l4: Input should be"),
        (
            "nvidia-l4: {machines: {'1': {on_demand: free}}}",
            "1.on_demand: Input should be a valid number",
        ),
        ("nvidia-l4: {machines: {'1': {on_demand: -1}}}", "greater than or equal to 0"),
        ("nvidia-l4: {machines: {'1': {spot: 1}}}", "on_demand: Field required"),
        ("nvidia-l4: {machines: {'1': {on_demand: 1, sport: 1}}}", "sport: Extra inputs"),
        ("nvidia-l4: {machines: {'3': {on_demand: 1}}}", "nvidia-l4:3 is not in the table"),
        ("nvidia-l5: {machines: {'1': {on_demand: 1}}}", "nvidia-l5:1 is not in the table"),
    ],
)
def test_invalid_price_file_is_rejected(tmp_path: Path, text: str | None, words: str) -> None:
    path = tmp_path / "prices.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UsageError, match=r"The price file cannot be used: .* Received: ") as raised:
        find_accelerator("nvidia-l4", path)
    assert words in str(raised.value)
