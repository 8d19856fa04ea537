"""Cloud Storage access under network faults: verified bytes, or a temporary error."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.bucket_server import BUCKET, bucket_server
from helpers.fault_proxy import FAULTS, fault_proxy, only
from helpers.unpublished_run import make_run

from trainer.errors import TemporaryError
from trainer.runs.publish import publish, verify
from trainer.storage import gcs, open_store
from trainer.storage.store import Store


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with bucket_server() as server:
        yield server.address


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gcs, "TIMEOUT_SECONDS", 1.0)
    monkeypatch.setattr(gcs, "RETRY_SECONDS", 6.0)


def through(proxy_address: str, prefix: str, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy_address)
    return open_store(f"gs://{BUCKET}/{prefix}")


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(
    "operation", ["create", "swap", "write", "read", "upload", "download", "large", "list"]
)
def test_single_fault_is_retried_without_loss(
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
        # The response to the first request of a large upload has no body.
        empty = {"flipped request": ("read", "download", "list"), "flipped reply": ("large",)}
        assert proxy.done == ([] if operation in empty.get(fault, ()) else [fault])
    found = clean.read("new")
    if operation in ("create", "write"):
        assert found is not None
        assert found.data == data
    elif operation in ("upload", "large"):
        assert found is not None
        assert found.data == source.read_bytes()
    elif operation == "download":
        assert target.read_bytes() == data


@pytest.mark.parametrize("operation", ["read", "download"])
def test_truncated_or_damaged_response_is_never_accepted(
    operation: str, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = os.urandom(300_000)
    through(address, tmp_path.name, monkeypatch).write("there", data)
    faults = {1: "cut reply", 2: "flipped reply"}
    with fault_proxy(address, lambda number, method, path: faults.get(number)) as proxy:
        store = through(proxy.address, tmp_path.name, monkeypatch)
        if operation == "read":
            assert store.read("there").data == data  # type: ignore[union-attr]
        else:
            store.download("there", tmp_path / "there")
            assert (tmp_path / "there").read_bytes() == data
    assert proxy.done == list(faults.values())


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("number", [2, 3, 4])
def test_fault_during_a_large_upload_is_retried_without_loss(
    fault: str, number: int, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gcs, "_UPLOAD_CHUNK_BYTES", 3 << 20)
    source = tmp_path / "source"
    source.write_bytes(os.urandom(9 << 20))
    with fault_proxy(address, only(fault, number), stall_seconds=2.0) as proxy:
        through(proxy.address, tmp_path.name, monkeypatch).upload(source, "new")
    # Only the last response has a body.
    assert proxy.done == ([] if fault == "flipped reply" and number < 4 else [fault])
    found = through(address, tmp_path.name, monkeypatch).read("new")
    assert found is not None
    assert found.data == source.read_bytes()


def test_object_removed_while_it_is_read_is_a_temporary_error(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = through(address, tmp_path.name, monkeypatch)
    store.write("there", b"old")
    (listed,) = store.entries()
    store.write("there", b"new")
    for _ in range(2):  # replaced, then removed
        with pytest.raises(TemporaryError, match="replaced or removed"):
            store.download("there", tmp_path / "there", listed.version)
        store.remove("there")
    assert not (tmp_path / "there").exists()


@pytest.mark.parametrize("fault", ["cut reply", "reset", "stall", "unavailable"])
def test_read_that_always_fails_is_a_temporary_error(
    fault: str, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gcs, "RETRY_SECONDS", 1.0)
    through(address, tmp_path.name, monkeypatch).write("there", os.urandom(300_000))
    with fault_proxy(address, lambda number, method, path: fault, stall_seconds=2.0) as proxy:
        store = through(proxy.address, tmp_path.name, monkeypatch)
        with pytest.raises(TemporaryError, match="all retries failed"):
            store.download("there", tmp_path / "there")
    assert len(proxy.done) > 1
    assert not (tmp_path / "there").exists()


def test_unreachable_server_is_a_temporary_error(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fault_proxy(address, lambda number, method, path: "unavailable") as proxy:
        store = through(proxy.address, tmp_path.name, monkeypatch)
        with pytest.raises(TemporaryError, match="all retries failed"):
            store.write("new", b"data")
    assert len(proxy.done) > 3


def test_unreadable_file_is_not_reported_as_changed(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gcs, "RETRY_SECONDS", 1.0)
    run = make_run(tmp_path)
    output = through(address, tmp_path.name, monkeypatch)
    for path in (path for path in run.rglob("*") if path.is_file() and ".tmp" not in str(path)):
        output.below(run.name).write(path.relative_to(run).as_posix(), path.read_bytes())
    publish(output, run.name, run)
    assert verify(output.below(run.name)) == []
    fails = lambda number, method, path: "unavailable" if "report.html" in path else None  # noqa: E731
    with fault_proxy(address, fails) as proxy:
        store = through(proxy.address, tmp_path.name, monkeypatch)
        with pytest.raises(TemporaryError, match=r"report\.html.*all retries failed"):
            verify(store.below(run.name))
