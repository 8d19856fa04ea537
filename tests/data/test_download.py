from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path

import pytest
import trustme
from helpers.archives import FILES, make_zip, tree
from helpers.downloads import AT_ONCE, DATA, LIMIT, MD5, SHA256, Told, fetch, kept_bytes
from helpers.https_server import Fault, HttpsServer, Served, https_server, write_ca

from trainer.data.fetch import fetch_source
from trainer.errors import DataError, TemporaryError, UsageError


def test_file_is_downloaded_under_its_own_name(server: HttpsServer, tmp_path: Path) -> None:
    told = Told()
    path = fetch(server, tmp_path, told=told)
    assert path.name == "digits.bin"
    assert path.read_bytes() == DATA
    assert ("Downloading digits.bin", len(DATA), "B") in told.started
    assert kept_bytes(tmp_path) == [len(DATA)]


def test_downloaded_archive_is_extracted(server: HttpsServer, tmp_path: Path) -> None:
    server.files["/pets.zip?v=1"] = Served(make_zip(tmp_path / "a.zip", FILES).read_bytes())
    assert tree(fetch(server, tmp_path / "cache", path="/pets.zip?v=1")) == FILES


@pytest.mark.parametrize("says_length", [True, False])
def test_file_without_a_declared_length_is_downloaded(
    server: HttpsServer, tmp_path: Path, says_length: bool
) -> None:
    server.files["/digits.bin"] = Served(DATA, says_length=says_length)
    assert fetch(server, tmp_path, SHA256).read_bytes() == DATA


# --- trust


def test_untrusted_certificate_is_a_data_error_with_a_remedy(
    server: HttpsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(write_ca(trustme.CA(), tmp_path / "other.pem")))
    with pytest.raises(DataError, match=r"certificate of the server is not trusted .*set REQUESTS_CA_BUNDLE"):
        fetch(server, tmp_path / "cache")
    assert server.asked == []


def test_certificate_of_another_host_is_not_trusted(
    ca: trustme.CA, server: HttpsServer, tmp_path: Path
) -> None:
    with (
        https_server(ca, "example.org") as other,
        pytest.raises(DataError, match="certificate of the server is not trusted"),
    ):
        fetch(other, tmp_path / "cache")


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_unusable_authority_is_a_usage_error(
    server: HttpsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None
) -> None:
    if content:
        (tmp_path / "none.pem").write_text(content)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "none.pem"))
    with pytest.raises(UsageError, match="Check REQUESTS_CA_BUNDLE"):
        fetch(server, tmp_path / "cache")


def test_redirects_are_followed_over_https(server: HttpsServer, tmp_path: Path) -> None:
    server.faults = [Fault(302, location="/elsewhere"), Fault(301, location=server.url("/digits.bin"))]
    assert fetch(server, tmp_path).read_bytes() == DATA
    assert [asked.path for asked in server.asked] == ["/digits.bin", "/elsewhere", "/digits.bin"]


def test_redirect_to_http_is_rejected(server: HttpsServer, tmp_path: Path) -> None:
    server.faults = [Fault(302, location="http://127.0.0.1/digits.bin")]
    with pytest.raises(UsageError, match=r"require https.*Received: http://127"):
        fetch(server, tmp_path)


@pytest.mark.parametrize("location", ["https://[::1", "/\xff\xfe"])
def test_redirect_to_an_invalid_address_is_a_data_error(
    server: HttpsServer, tmp_path: Path, location: str
) -> None:
    server.faults = [Fault(302, location=location)]
    with pytest.raises(DataError, match="invalid address"):
        fetch(server, tmp_path)
    gc.collect()  # report an unclosed connection in this test, not in a later one


def test_redirect_loop_is_a_data_error(server: HttpsServer, tmp_path: Path) -> None:
    server.faults = [Fault(302, location="/digits.bin")] * 20
    with pytest.raises(DataError, match="more than 10 times"):
        fetch(server, tmp_path)


def test_password_in_a_url_is_used_and_not_printed(server: HttpsServer, tmp_path: Path) -> None:
    url = server.url("/gone.zip").replace("https://", "https://ann:secret@")
    with pytest.raises(DataError) as error:
        fetch_source(url, None, tmp_path, LIMIT, Told(), AT_ONCE)
    assert "secret" not in str(error.value)
    assert server.asked[0].headers["Authorization"].startswith("Basic ")
    assert not any(b"secret" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


# --- the cache


@pytest.mark.parametrize("checksum", [SHA256, MD5, SHA256.upper().replace("SHA", "sha")])
def test_cached_copy_with_the_right_checksum_needs_no_request(
    server: HttpsServer, tmp_path: Path, checksum: str
) -> None:
    first = fetch(server, tmp_path, checksum)
    assert fetch(server, tmp_path, checksum) == first
    assert len(server.asked) == 1


def test_changed_copy_is_downloaded_again(server: HttpsServer, tmp_path: Path) -> None:
    path = fetch(server, tmp_path, SHA256)
    path.write_bytes(DATA[:-1] + b"?")
    assert fetch(server, tmp_path, SHA256).read_bytes() == DATA


@pytest.mark.parametrize(
    "served",
    [Served(DATA), Served(DATA, etag='W/"v1"'), Served(DATA, etag="", last_modified="Fri, 02 Jan 2026")],
)
def test_copy_without_a_checksum_is_revalidated_with_the_server(
    server: HttpsServer, tmp_path: Path, served: Served
) -> None:
    server.files["/digits.bin"] = served
    first = fetch(server, tmp_path)
    assert fetch(server, tmp_path) == first
    assert server.statuses() == [200, 304]
    assert first.read_bytes() == DATA


@pytest.mark.parametrize("path", ["/pets.zip", "/uc?id=1"])
@pytest.mark.parametrize("checksum", [None, MD5])
def test_web_page_instead_of_a_file_is_rejected_and_the_copy_is_kept(
    server: HttpsServer, tmp_path: Path, path: str, checksum: str | None
) -> None:
    server.files[path] = Served(make_zip(tmp_path / "a.zip", FILES).read_bytes(), etag='"v1"')
    assert tree(fetch(server, tmp_path / "cache", path=path)) == FILES
    server.files[path] = Served(b"\n<!DOCTYPE html><title>Sign in</title>", etag='"v2"')
    with pytest.raises(DataError, match=r"sent a web page .* Use the address of the file") as error:
        fetch(server, tmp_path / "cache", checksum, path=path)
    assert server.url(path).partition("?")[0] in str(error.value)
    assert "id=1" not in str(error.value)
    server.shutdown()
    server.server_close()
    assert tree(fetch(server, tmp_path / "cache", path=path)) == FILES


def test_damaged_archive_is_downloaded_again_although_it_is_current(
    server: HttpsServer, tmp_path: Path
) -> None:
    server.files["/digits.zip"] = Served(b"PK\x03\x04 cut off")
    for _ in range(2):
        with pytest.raises(DataError, match="Download or copy it again"):
            fetch(server, tmp_path, path="/digits.zip")
    assert server.statuses() == [200, 200]


def test_copy_without_a_checksum_is_replaced_by_a_newer_version(server: HttpsServer, tmp_path: Path) -> None:
    fetch(server, tmp_path)
    server.files["/digits.bin"] = Served(b"new", etag='"v2"')
    assert fetch(server, tmp_path).read_bytes() == b"new"


def test_copy_is_used_with_a_message_if_the_network_is_down(server: HttpsServer, tmp_path: Path) -> None:
    fetch(server, tmp_path)
    server.shutdown()
    server.server_close()
    told = Told()
    assert fetch(server, tmp_path, told=told).read_bytes() == DATA
    assert "Using the cached copy of" in told.said[-1]
    with pytest.raises(
        TemporaryError, match=r"connection to 127\.0\.0\.1 failed \(Connection refused\)\. Try again"
    ):
        fetch(server, tmp_path / "no copy")
    with pytest.raises(TemporaryError):
        fetch(server, tmp_path, f"sha256:{'0' * 64}")


def test_copy_is_kept_if_its_replacement_fails(server: HttpsServer, tmp_path: Path) -> None:
    path = fetch(server, tmp_path)
    server.files["/digits.bin"] = Served(DATA[::-1], etag='"v2"')
    server.faults = [Fault(close_after=1000)] * 5
    told = Told()
    assert fetch(server, tmp_path, told=told) == path
    assert path.read_bytes() == DATA
    assert "may be out of date" in told.said[-1]


def test_two_concurrent_processes_download_once(server: HttpsServer, tmp_path: Path) -> None:
    server.slowness_seconds = 1.0
    code = (
        "import sys; from pathlib import Path\n"
        "from trainer.data.fetch import fetch_source; from trainer.data.progress import SilentProgress\n"
        "print(fetch_source(sys.argv[1], sys.argv[2], Path(sys.argv[3]), 2**30, SilentProgress()))"
    )
    command = [sys.executable, "-c", code, server.url("/digits.bin"), SHA256, str(tmp_path / "cache")]
    children = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = {child.communicate()[0].strip() for child in children}
    assert [child.returncode for child in children] == [0, 0]
    assert len(answers) == 1
    assert Path(answers.pop()).read_bytes() == DATA
    assert server.statuses() == [200]
