"""Redaction: no password, query or fragment of a URL appears in messages or displayed files."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import pytest
from click.testing import CliRunner
from helpers.trainer_process import refused, trainer
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trainer.cli.app import cli
from trainer.cli.paths import absolute_source
from trainer.compare.runs import Run, spec_differences
from trainer.data.fetch import fetch_source
from trainer.data.http import require_https
from trainer.data.progress import SilentProgress
from trainer.errors import TrainerError
from trainer.runs import Start, open_run_folder, write_environment
from trainer.sanitize import shown_address, without_secrets
from trainer.spec import dump_shown_spec, dump_spec, load_spec, parse_spec, spec_changes, spec_digest
from trainer.spec.text import parse_mapping
from trainer.storage import open_store
from trainer.storage.store import split_uri

SECRET = "S3CR3T"
NOW = datetime(2026, 11, 30, tzinfo=timezone.utc)
NASTY = "https://ann:pa'ss S3CR3T@host.invalid:8/a b.zip?token=abc'S3CR3T \"S3CR3T#access_token=S3CR3T"
_AROUND = st.text(alphabet="ab0'\"`()[]{}<>,;:!?#@/\\&=%+ \t\n|$~^*.-_é", max_size=6)
_HIDDEN = st.builds(lambda before, after: f"{before}{SECRET}{after}", _AROUND, _AROUND)
_HOSTS = st.sampled_from(["host.invalid", "[::1]:8443", "HOST:99999", "10.0.0.1", ""])


@st.composite
def addresses(draw: st.DrawFn) -> str:
    """Return a URL with secrets in any of the parts that may contain one."""
    scheme = draw(
        st.sampled_from(["https://", "http://", "HTTPS://", "ftp://", "s3://", "https:/", "https:"])
    )
    user = draw(st.none() | st.builds("{}:{}@".format, _AROUND, _HIDDEN)) or ""
    path = draw(st.sampled_from(["", "/", "/a.zip", "/a b/%20.zip", "/~x/a@b.zip"]))
    query, fragment = (draw(st.none() | _HIDDEN) for _ in range(2))
    rest = "".join(f"{mark}{part}" for mark, part in (("?", query), ("#", fragment)) if part)
    # A blank right after the colon would make it prose: "over https: or gs:".
    return f"{scheme}{f'{user}{draw(_HOSTS)}{path}{rest}'.lstrip()}"


def error_of(action: Callable[[], object]) -> str:
    """Return the message of the `TrainerError` that `action` raises, or ""."""
    try:
        action()
    except TrainerError as error:
        return str(error)
    return ""


def spec_texts(url: str) -> list[str]:
    """Return messages and dumps of a valid spec with the URL, and of specs invalid in many ways."""
    data = {"source": url, "layout": url}
    texts = [
        error_of(lambda: load_spec(overrides={"data.source": url, "run_name": url})),
        error_of(lambda: load_spec(overrides={"data": data, "publish.test_data": [url, {url: url}]})),
        error_of(lambda: load_spec(overrides={url: 3})),
        *(error_of(lambda key=key: load_spec(settings=[key])) for key in (url, f"epochs={url}", f"{url}=3")),
        error_of(lambda: load_spec(settings=[f"data.source=[{url}"])),
        error_of(lambda: parse_mapping(f"data: {{source: '{' '.join(url.split())}", "spec.yaml")),
    ]
    spec = load_spec(overrides={"data.source": url, "publish.test_data": url})
    other = load_spec(overrides={"data.source": url.replace(SECRET, f"{SECRET}9"), "seed": 3})
    runs = [
        Run("a", "a", {}, "test", spec=parse_mapping(dump_spec(each), "spec.yaml")) for each in (spec, other)
    ]
    return [*texts, dump_shown_spec(spec), *spec_changes(spec, other), str(spec_differences(*runs))]


def place_texts(url: str) -> list[str]:
    """Return the errors for the URL as a source, an output, a run, or the path that it resembles."""
    one_slash = url.replace("://", ":/")
    sources = [url, url.replace("https", "ftp", 1), one_slash, os.path.abspath(one_slash)]
    return [
        error_of(lambda: require_https(url)),
        error_of(lambda: absolute_source(one_slash)),
        *(
            error_of(lambda each=each: fetch_source(each, None, Path("/none"), 1, SilentProgress()))
            for each in sources
            if not each.lower().startswith("https://")
        ),
        error_of(lambda: open_store(url)),
        error_of(lambda: split_uri(f"gs://KEY:{SECRET}@{url.partition(':')[2].strip('/')}")),
    ]


def command_texts(url: str) -> list[str]:
    """Return the outputs of commands with the URL in wrong arguments."""
    texts = []
    for words in (
        [url], [f"--{url}"], ["train", "a.yaml", url], ["train", f"--epochs={url}"], ["runs", url, url],
        ["bench", "--seconds", url], ["submit", url], ["verify", url], ["runs", url],
        ["train", url, "--set", "train.epochs=0"],
        ["evaluate"], ["recipes", url], ["compare", url, url, "--html", url],
        ["rollback", url], ["submit", "docker", "--data", url, "--output", "/runs", "--dry-run"],
        ["submit", "gke", "--data", url, "--output", "gs://b/runs", "--image", "a/b", "--dry-run"],
        *(
            ["submit", place, "--recipe", "demo", "--output", f"gs://KEY:{SECRET}@b/x", *more, "--dry-run"]
            for place, more in (("docker", []), ("gke", ["--image", "a/b"]), ("vertex", ["--image", "a/b"]))
        ),
        ["doctor", "docker", "--output", url],
    ):  # fmt: skip
        result = CliRunner().invoke(cli, words)
        texts += [result.output, without_secrets(str(result.exception or ""), words)]
    return texts


@settings(max_examples=60, deadline=None)
@given(addresses())
@example(NASTY)
@example("https://:/S3CR3T?@host.invalid")
@example("https://ann:0/S3CR3T#@host.invalid")
@example("https://0/:S3CR3T#@host.invalid")
@example("https://:\n*S3CR3T@host.invalid")
def test_no_message_contains_the_secret_of_an_address(url: str) -> None:
    if SECRET not in url:
        return
    texts = [shown_address(url), shown_address(f"data.source={url}"), *spec_texts(url), *place_texts(url)]
    quoted = [f"at {url!r}: no", f"({url!r})", f"[{url!r}, 'b']", *([url] if url.split() == [url] else [])]
    typed = [f"Received: {url}", f"'{url}'", f"{Path(url)} isn't there"]
    texts += [without_secrets(words) for words in quoted]
    texts += [without_secrets(words, ["train", f"--data={url}"]) for words in typed]
    for text in texts:
        assert SECRET not in text, (url, text)


@settings(max_examples=25, deadline=None)
@given(addresses())
@example(NASTY)
def test_no_command_prints_the_secret_of_an_address(url: str) -> None:
    for text in command_texts(url):
        assert SECRET not in text, (url, text)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60) | st.from_regex(r"[a-z]{1,5}:/{0,3}[\[\]:@?#/a-z0-9]{0,12}", fullmatch=True))
def test_redaction_accepts_any_text_and_is_idempotent(text: str) -> None:
    assert shown_address(shown_address(text)) == shown_address(text)
    assert without_secrets(without_secrets(text)) == without_secrets(text)
    if ":" not in text:
        assert without_secrets(text) == text


@pytest.mark.parametrize(
    "words",
    [
        ["train", NASTY.replace("host.invalid:8", "host.invalid:99999999")],
        ["train", "--data", NASTY.replace("host.invalid:8", "host.invalid:99999999")],
        ["runs", "gs://KEY:S3CR3T@bucket/runs"],
        ["predict", ".", NASTY.replace("host.invalid:8", "host.invalid:99999999")],
    ],
)
def test_failing_command_prints_no_secret(words: list[str], tmp_path: Path) -> None:
    done = trainer(*words, cache=tmp_path / "cache", cwd=tmp_path)
    refused(done, 2, "Received")
    assert SECRET not in done.stdout + done.stderr


def test_only_the_spec_of_a_run_contains_the_secret_and_only_its_owner_can_read_it(
    tmp_path: Path,
) -> None:
    previous = os.umask(0)
    try:
        spec = load_spec(
            overrides={"data.source": NASTY, "output": str(tmp_path / "runs"), "run_name": "one"}
        )
        folder = open_run_folder(spec, NOW, tmp_path / "cache")
        write_environment(folder.path, spec, "cpu", Start("aa", "float32", 20), ["trainer", "--data", NASTY])
        folder.checkpoints.mkdir()
        (folder.checkpoints / "step-0001.npz").write_bytes(b"")
        (folder.path / "starts.jsonl").write_text("{}\n")
        folder.release()
        path = folder.path / "spec.yaml"
        holders = [each for each in folder.path.rglob("*") if each.is_file() and SECRET in each.read_text()]
        assert holders == [path]
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        path.chmod(0o666)  # the mode that an earlier version used
        open_run_folder(spec, NOW, tmp_path / "cache").release()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        plain = load_spec(overrides={"output": str(tmp_path / "runs"), "run_name": "two"})
        open_run_folder(plain, NOW, tmp_path / "cache").release()
        assert stat.S_IMODE((tmp_path / "runs" / "two" / "spec.yaml").stat().st_mode) == 0o666
    finally:
        os.umask(previous)


def test_errors_of_a_spec_with_a_url_still_name_the_key_and_no_part_of_a_password() -> None:
    repeated = "data: {source: 'https://h/x?sig=1'}\ntrain: {}\ntrain: {}\n"
    assert "duplicate key 'train'" in error_of(lambda: parse_mapping(repeated, "spec.yaml"))
    split = f"a: https://ann:x\ny\n{SECRET}@h: b: [\n"
    assert SECRET not in error_of(lambda: parse_mapping(split, "spec.yaml"))


def test_query_with_a_colon_and_an_address_does_not_hide_the_file() -> None:
    assert shown_address("https://host/a.zip?t=1:2&to=x@y") == "https://host/a.zip?..."


def test_url_with_a_new_signature_refers_to_the_same_data() -> None:
    first, renewed, other = (
        load_spec(overrides={"data.source": f"https://{rest}"})
        for rest in (
            "ann:one@host/a.zip?id=3&X-Goog-Signature=aa",
            "bob:two@host/a.zip?id=3&X-Goog-Signature=bb&X-Goog-Expires=9#x",
            "host/a.zip?id=4&X-Goog-Signature=aa",
        )
    )
    assert spec_changes(first, renewed) == []
    # Another query may refer to another file, which only the data can show.
    assert spec_changes(first, other) == [
        "data.source: https://host/a.zip?... -> the same URL with another query"
    ]
    assert spec_digest(first) == spec_digest(renewed)
    elsewhere = load_spec(overrides={"data.source": "https://host/b.zip?id=3"})
    assert spec_digest(first) != spec_digest(elsewhere)
    assert parse_spec(dump_spec(first), "spec.yaml") == first
