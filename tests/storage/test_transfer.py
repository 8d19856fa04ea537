from __future__ import annotations

import random
from pathlib import Path

import pytest
from helpers.downloads import AT_ONCE, DATA, LIMIT, MD5, SHA256, Told, fetch, kept_bytes
from helpers.https_server import Fault, HttpsServer, Served
from helpers.small_disk import small_disk

from trainer.data.download import RetryPolicy
from trainer.data.fetch import fetch_source
from trainer.data.progress import SilentTask, Task
from trainer.errors import DataError, StoppedError, TemporaryError


def test_broken_download_is_resumed(server: HttpsServer, tmp_path: Path) -> None:
    server.faults = [Fault(close_after=100_000), Fault(close_after=50_000)]
    assert fetch(server, tmp_path, SHA256).read_bytes() == DATA
    assert server.statuses() == [200, 206, 206]
    assert [asked.headers.get("Range") for asked in server.asked] == [None, "bytes=100000-", "bytes=150000-"]
    assert server.asked[1].headers["If-Range"] == '"v1"'


def test_next_process_resumes_the_download_of_the_last_one(server: HttpsServer, tmp_path: Path) -> None:
    server.faults = [Fault(close_after=10_000)] * 5
    with pytest.raises(TemporaryError, match=r"failed 5 times in a row: .*Start again to resume it"):
        fetch(server, tmp_path)
    assert len(server.asked) == 5
    assert kept_bytes(tmp_path) == [50_000]
    assert fetch(server, tmp_path).read_bytes() == DATA
    assert server.asked[-1].headers["Range"] == "bytes=50000-"


def test_partial_download_is_kept_when_the_process_is_stopped(server: HttpsServer, tmp_path: Path) -> None:
    class Stopped(Told):
        def start(self, label: str, total: int | None, unit: str) -> Task:
            if label.startswith("Downloading"):
                return StoppedTask()
            return super().start(label, total, unit)

    class StoppedTask(SilentTask):
        done = 0

        def advance(self, amount: int) -> None:
            self.done += amount
            if self.done >= 60_000:
                raise StoppedError("Stopped on request.")

    with pytest.raises(StoppedError):
        fetch(server, tmp_path, told=Stopped())
    assert kept_bytes(tmp_path)[0] >= 60_000
    assert fetch(server, tmp_path).read_bytes() == DATA
    assert server.statuses() == [200, 206]


def test_complete_download_of_a_killed_process_requests_one_more_byte(
    server: HttpsServer, tmp_path: Path
) -> None:
    path = fetch(server, tmp_path)
    path.rename(path.with_name(".partial"))
    path.with_name(".partial.json").write_text(f'{{"etag": "\\"v1\\"", "total": {len(DATA)}}}')
    assert fetch(server, tmp_path).read_bytes() == DATA
    assert server.asked[-1].headers["Range"] == f"bytes={len(DATA) - 1}-"


@pytest.mark.parametrize("honours_if_range", [True, False])
def test_file_that_has_changed_is_downloaded_from_the_start(
    server: HttpsServer, tmp_path: Path, honours_if_range: bool
) -> None:
    server.faults = [Fault(close_after=10_000)] * 5
    with pytest.raises(TemporaryError):
        fetch(server, tmp_path)
    new = DATA[::-1]
    server.files["/digits.bin"] = Served(new, etag='"v2"', honours_if_range=honours_if_range)
    assert fetch(server, tmp_path).read_bytes() == new


@pytest.mark.parametrize(
    "served", [Served(DATA, ranges=False), Served(DATA, etag='W/"v1"'), Served(DATA, etag="")]
)
def test_server_that_cannot_resume_sends_the_whole_file_again(
    server: HttpsServer, tmp_path: Path, served: Served
) -> None:
    server.files["/digits.bin"] = served
    server.faults = [Fault(close_after=100_000)]
    assert fetch(server, tmp_path).read_bytes() == DATA
    assert server.statuses() == [200, 200]


def test_slow_connection_with_progress_is_retried_without_limit(server: HttpsServer, tmp_path: Path) -> None:
    data = random.Random(1).randbytes(9 * 2**20)
    server.files["/digits.bin"] = Served(data)
    server.faults = [Fault(close_after=2**20 + 1)] * 8
    assert fetch(server, tmp_path).read_bytes() == data


# --- failures


def test_busy_server_is_retried(server: HttpsServer, tmp_path: Path) -> None:
    told = Told()
    server.faults = [Fault(503), Fault(429), Fault(500), Fault(502)]
    assert fetch(server, tmp_path, told=told).read_bytes() == DATA
    assert told.said[0] == "the server responded with 503 Service Unavailable; retrying in 0 s"
    assert len(told.said) == 4


def test_retry_after_header_is_respected(server: HttpsServer, tmp_path: Path) -> None:
    told = Told()
    server.faults = [Fault(503, headers={"Retry-After": "1"})]
    fetch(server, tmp_path, told=told)
    assert told.said == ["the server responded with 503 Service Unavailable; retrying in 1 s"]


def test_server_that_stays_busy_is_a_temporary_failure(server: HttpsServer, tmp_path: Path) -> None:
    server.faults = [Fault(503)] * 9
    with pytest.raises(
        TemporaryError, match="failed 5 times in a row: the server responded with 503"
    ) as error:
        fetch(server, tmp_path)
    assert error.value.exit_code == 75
    assert len(server.asked) == 5


def test_silent_server_is_a_temporary_failure(server: HttpsServer, tmp_path: Path) -> None:
    server.faults = [Fault(close_after=1000, silent_seconds=0.5)] * 2
    impatient = RetryPolicy(delays_seconds=(0.0,), read_seconds=0.1)
    with pytest.raises(TemporaryError, match=r"2 times in a row: 127\.0\.0\.1 did not respond in time"):
        fetch_source(server.url("/digits.bin"), None, tmp_path, LIMIT, Told(), impatient)


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (401, "denies access"),
        (403, "denies access"),
        (404, "no file at this address"),
        (410, "no file at this address"),
        (418, "418"),
    ],
)
def test_missing_or_forbidden_file_is_a_data_error_at_once(
    server: HttpsServer, tmp_path: Path, status: int, says: str
) -> None:
    server.faults = [Fault(status)]
    with pytest.raises(DataError, match=says) as error:
        fetch(server, tmp_path)
    assert server.url("/digits.bin") in str(error.value)
    assert len(server.asked) == 1
    assert kept_bytes(tmp_path) == []


def test_wrong_checksum_names_both_and_keeps_nothing(server: HttpsServer, tmp_path: Path) -> None:
    wrong = f"md5:{'0' * 32}"
    with pytest.raises(DataError, match=rf"wrong checksum.*Expected {wrong}\..*Received: {MD5}"):
        fetch(server, tmp_path, wrong)
    assert kept_bytes(tmp_path) == []
    assert fetch(server, tmp_path, MD5).read_bytes() == DATA


def test_wrong_checksum_leaves_the_copy_that_was_there(server: HttpsServer, tmp_path: Path) -> None:
    path = fetch(server, tmp_path)
    with pytest.raises(DataError, match="wrong checksum"):
        fetch(server, tmp_path, f"sha256:{'0' * 64}")
    assert path.read_bytes() == DATA


@pytest.mark.parametrize("says_length", [True, False])
def test_endless_file_is_refused_and_not_kept(server: HttpsServer, tmp_path: Path, says_length: bool) -> None:
    server.files["/digits.bin"] = Served(DATA, says_length=says_length)
    with pytest.raises(DataError, match=r"larger than data\.max_extracted_mib"):
        fetch_source(server.url("/digits.bin"), None, tmp_path, 200_000, (told := Told()), AT_ONCE)
    assert len(told.started) == (0 if says_length else 1)
    assert kept_bytes(tmp_path) == []


def test_full_disk_is_temporary_and_leaves_nothing(server: HttpsServer, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "size=128k") as disk:
        with pytest.raises(TemporaryError, match="The disk is full"):
            fetch(server, disk)
        assert kept_bytes(disk) == []
    assert len(server.asked) == 1
