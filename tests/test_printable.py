"""What is shown of names and addresses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trainer.printable import printable, without_secrets
from trainer.run_folder import Start, write_environment
from trainer.spec import load_spec


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://ann:secret@host:8/a.zip?sig=token&b=1#part", "https://host:8/a.zip?...#..."),
        ("HTTPS://ann@host", "HTTPS://host"),
        ("https://host/a@b.zip", "https://host/a@b.zip"),
        ("data: {source: 'https://a:b@host/x?k=1'}", "data: {source: 'https://host/x?...'}"),
        ("/photos/a?b@c", "/photos/a?b@c"),
        ("gs://bucket/a?b", "gs://bucket/a?b"),
    ],
)
def test_an_address_is_shown_without_what_opens_it(text: str, shown: str) -> None:
    assert without_secrets(text) == shown


def test_the_command_that_is_kept_holds_no_password(tmp_path: Path) -> None:
    command = ["trainer", "train", "--data", "https://ann:secret@host/x.zip?sig=token"]
    write_environment(tmp_path, load_spec(), "cpu", Start("aa", "float32", 20), command)
    kept = json.loads((tmp_path / "environment.json").read_text())["command"]
    assert kept == [*command[:3], "https://host/x.zip?..."]


def test_letters_of_any_language_stay_and_what_turns_their_direction_does_not() -> None:
    assert printable("gato é дом شجرة") == "gato é дом شجرة"
    assert printable("a\u202egnp.exe\x1b\udcff") == "a\\u202egnp.exe\\x1b\\udcff"
