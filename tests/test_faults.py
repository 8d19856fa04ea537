"""What a store does when the network fails: verified bytes, or an error that says to try again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from bucket_server import BUCKET, bucket_server
from fault_proxy import FAULTS, fault_proxy, only

from trainer.exits import TemporaryError
from trainer.storage import bucket
from trainer.storage.store import Store, open_store

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with bucket_server() as server:
        yield server.address


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket, "TIMEOUT_SECONDS", 1.0)
    monkeypatch.setattr(bucket, "RETRY_SECONDS", 6.0)


def through(proxy_address: str, prefix: str, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy_address)
    return open_store(f"gs://{BUCKET}/{prefix}")


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(
    "operation", ["create", "swap", "write", "read", "upload", "download", "large", "list"]
)
def test_one_fault_costs_nothing_or_is_told(
    fault: str, operation: str, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = os.urandom(5000)
    clean = through(address, tmp_path.name, monkeypatch)
    clean.write("there", data)
    version = clean.find("there").version  # type: ignore[union-attr]
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(data if operation != "large" else os.urandom(9 << 20))
    with fault_proxy(address, only(fault, 1), stall_seconds=2.0) as proxy:
        store = through(proxy.address, tmp_path.name, monkeypatch)
        try:
            if operation == "create":
                assert store.create("new", data)
            elif operation == "swap":
                assert store.swap("there", data[::-1], version) is not None
            elif operation == "write":
                store.write("new", data)
            elif operation == "read":
                assert store.read("there").data == data  # type: ignore[union-attr]
            elif operation in ("upload", "large"):
                store.upload(source, "new")
            elif operation == "download":
                store.download("there", target)
            else:
                assert [entry.name for entry in store.entries()] == ["there"]
            failed = False
        except TemporaryError:
            failed = True
        assert proxy.done == [fault]
    found = clean.read("new")
    if failed:
        # Only damage on the way can't be mended by asking again.
        assert fault.startswith("flipped"), operation
        assert not target.exists()
    elif operation in ("create", "write"):
        assert found is not None
        assert found.data == data
    elif operation in ("upload", "large"):
        assert found is not None
        assert found.data == source.read_bytes()
    elif operation == "download":
        assert target.read_bytes() == data


def test_a_server_that_stays_away_is_an_error_that_says_to_try_again(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fault_proxy(address, lambda number, method, path: "unavailable") as proxy:
        store = through(proxy.address, tmp_path.name, monkeypatch)
        with pytest.raises(TemporaryError, match="retries are used up"):
            store.write("new", b"data")
    assert len(proxy.done) > 3
