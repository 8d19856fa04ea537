"""Store errors of refused requests: at the start, during a run, and 412 without a precondition."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import pytest
import requests
from helpers.bucket_server import BUCKET
from helpers.fault_proxy import FaultProxy, fault_proxy
from helpers.release_inputs import finished

from trainer.data.http import get
from trainer.errors import TemporaryError, UsageError
from trainer.release.overview import overview
from trainer.runs import open_run_folder
from trainer.spec import load_spec
from trainer.storage import gcs, open_store
from trainer.storage.gcs import make_client
from trainer.storage.local import write_text
from trainer.storage.store import Store


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gcs, "RETRY_SECONDS", 0.5)


class Faults:
    """The next fault to inject, how many times, and into which HTTP methods."""

    def __init__(self) -> None:
        self.fault, self.times, self.methods = "", 0, ("GET", "POST", "PUT", "DELETE")

    def __call__(self, number: int, method: str, path: str) -> str | None:
        if self.times <= 0 or method not in self.methods:
            return None
        self.times -= 1
        return self.fault

    def come(self, fault: str, times: int = 1000, *methods: str) -> None:
        self.fault, self.times, self.methods = fault, times, methods or self.methods


@contextmanager
def proxied(
    address: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Store, Faults, FaultProxy]]:
    faults = Faults()
    with fault_proxy(address, faults) as proxy:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.address)
        yield open_store(f"gs://{BUCKET}/{prefix}"), faults, proxy


def test_permission_denied_after_success_is_retried_and_then_temporary(
    bucket_address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault = "unauthorized"
    with proxied(bucket_address, tmp_path.name, monkeypatch) as (output, faults, proxy):
        (tmp_path / "file").write_bytes(b"file")
        uses: dict[str, Callable[[Store], object]] = {
            "POST": lambda store: store.write("a", b"new"),
            "PUT": lambda store: store.upload(tmp_path / "file", "b"),
            "GET": lambda store: store.read("a"),
            "DELETE": lambda store: store.remove("a"),
        }
        for method, use in uses.items():
            store = open_store(output.uri)
            faults.come(fault)
            before = len(proxy.done)
            with pytest.raises(UsageError, match="credentials"):
                use(store)
            assert len(proxy.done) - before == 1, method  # not retried at the start
            faults.come(fault, 0)
            use(store.below(""))
            faults.come(fault, 2)
            use(store)  # the fault is transient
            assert faults.times == 0
            output.write("a", b"there")
            faults.come(fault)
            with pytest.raises(TemporaryError, match="denies an operation that it allowed before"):
                use(store)
            faults.come(fault, 0)


def test_run_that_loses_its_permissions_can_be_resumed(
    bucket_address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with proxied(bucket_address, tmp_path.name, monkeypatch) as (output, faults, _):
        spec = load_spec(recipe="demo", overrides={"output": output.uri, "run_name": "one"})
        faults.come("forbidden")
        with pytest.raises(UsageError, match=r"roles/storage\.objectUser"):
            open_run_folder(spec, datetime(2026, 1, 2), tmp_path / "cache")
        faults.come("forbidden", 0)
        folder = open_run_folder(spec, datetime(2026, 1, 2), tmp_path / "cache")
        try:
            (folder.path / "history.jsonl").write_text("{}\n")
            faults.come("forbidden")
            with pytest.raises(TemporaryError, match="denies an operation that it allowed before"):
                folder.keep()
            faults.come("forbidden", 0)
            folder.keep()
            assert output.read("one/history.jsonl") is not None
        finally:
            folder.release()


def test_precondition_failure_without_a_condition_is_reported(
    bucket_address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with proxied(bucket_address, tmp_path.name, monkeypatch) as (store, faults, _):
        finished(store, tmp_path / "local", "one")
        version = store.swap("a", b"there", None)
        (tmp_path / "file").write_bytes(b"file")
        uses: list[Callable[[], object]] = [
            lambda: store.read("a"), lambda: store.find("a"), lambda: store.written_at("a"), store.entries,
            lambda: store.sha256("a"), lambda: list(overview(store)), lambda: store.write("a", b"new"),
            lambda: store.upload(tmp_path / "file", "a"), lambda: store.remove("a"),
        ]  # fmt: skip
        for use in uses:
            faults.come("precondition")
            with pytest.raises(UsageError, match="a policy of the bucket forbids it"):
                use()
        # With a precondition that holds, a 412 is not a lost race either.
        faults.come("precondition", 1000, "POST", "DELETE")
        for conditional in (lambda: store.swap("a", b"new", version), lambda: store.remove("a", version)):
            with pytest.raises(UsageError, match="a policy of the bucket forbids it"):
                conditional()
        faults.come("precondition", 0)
        assert store.find("a") == next(entry for entry in store.entries() if entry.name == "a")
        assert store.swap("a", b"new", "1") is None
        store.remove("a", "1")
        assert store.read("a").data == b"there"  # type: ignore[union-attr]


def test_checksum_mismatch_is_not_a_lost_race(
    bucket_address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with proxied(bucket_address, tmp_path.name, monkeypatch) as (store, faults, _):
        faults.come("checksum", 2)
        version = store.swap("a", b"one", None)
        assert version is not None
        faults.come("precondition", 1, "POST")  # a transient 412 for another reason
        assert store.swap("a", b"two", version) is not None
        faults.come("checksum", 1000, "POST")
        with pytest.raises(TemporaryError, match=r"The checksum of .* does not match"):
            store.swap("a", b"three", store.find("a").version)  # type: ignore[union-attr]


@pytest.mark.parametrize("proxy", ["http://user:x@", "http://", "http://user:x@:3128", "http://[::1"])
def test_invalid_proxy_is_reported_without_its_password(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.setenv(name, proxy)
    with requests.Session() as session:
        for use in (make_client, lambda: get(session, "https://example.com/a.zip", {}, (1.0, 1.0))):
            with pytest.raises(UsageError, match=r"HTTPS_PROXY or ALL_PROXY to http://HOST:PORT") as raised:
                use()
            assert "user" not in str(raised.value)


def test_run_removed_from_its_bucket_is_not_uploaded_again(
    bucket_address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", bucket_address)
    output = open_store(f"gs://{BUCKET}/{tmp_path.name}")
    spec = load_spec(recipe="demo", overrides={"output": output.uri, "run_name": "one"})
    for remove_local in (False, True):
        folder = open_run_folder(spec, datetime(2026, 1, 2), tmp_path / "cache")
        folder.keep()
        if remove_local:
            (folder.path / "spec.yaml").unlink()
        for entry in [] if remove_local else output.entries("one/"):
            output.remove(entry.name)
        before = output.entries("one/")
        for _ in range(2):
            with pytest.raises(TemporaryError, match="The run was removed during training"):
                folder.keep()
        if remove_local:
            with pytest.raises(TemporaryError, match="The run was removed during training"):
                write_text(folder.path / "history.jsonl", "{}")
        assert output.entries("one/") == before
        folder.release()
