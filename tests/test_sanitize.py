"""Sanitization of names, URLs and CSV cells for display."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from trainer.data.items import Rejection
from trainer.evaluate.metrics import Predictions
from trainer.evaluate.prediction_files import read_predictions, write_predictions
from trainer.runs import Start, write_environment, write_rejected
from trainer.sanitize import printable, spreadsheet_cell, text_of_cell, without_secrets
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
def test_address_is_shown_without_credentials(text: str, shown: str) -> None:
    assert without_secrets(text) == shown


def test_recorded_command_contains_no_password(tmp_path: Path) -> None:
    command = ["trainer", "train", "--data", "https://ann:secret@host/x.zip?sig=token"]
    write_environment(tmp_path, load_spec(), "cpu", Start("aa", "float32", 20), command)
    kept = json.loads((tmp_path / "environment.json").read_text())["command"]
    assert kept == [*command[:3], "https://host/x.zip?..."]


def test_letters_of_all_languages_are_kept_and_direction_marks_are_escaped() -> None:
    assert printable("gato é дом شجرة") == "gato é дом شجرة"
    assert printable("a\u202egnp.exe\x1b\udcff") == "a\\u202egnp.exe\\x1b\\udcff"


_NAMES = ("=1+1|'cmd'!A1", "+x", "-0.5", "@sum", "\tx", "\rx", "'=x", "''+x", "'plain", "plain", "")


def test_csv_cells_are_no_formulas_and_texts_are_restored(tmp_path: Path) -> None:
    for name in _NAMES:
        assert not spreadsheet_cell(name).startswith(("=", "+", "-", "@", "\t", "\r"))
        assert text_of_cell(spreadsheet_cell(name)) == name
    assert len(set(map(spreadsheet_cell, _NAMES))) == len(_NAMES)
    probabilities = np.full((len(_NAMES), 2), 0.5)
    answers = Predictions("test", _NAMES, np.zeros(len(_NAMES), np.int32), probabilities, ("=cats", "-dogs"))
    write_predictions(path := tmp_path / "predictions.csv", [answers])
    (read,) = read_predictions(path)
    assert (read.names, read.class_names) == (_NAMES, ("=cats", "-dogs"))
    assert np.array_equal(read.probabilities, probabilities)  # numbers are not escaped
    lines = path.read_text().splitlines()
    assert lines[1].startswith('"test","\'=1+1')
    path.write_text(path.read_text().replace("\"'=", '"='))  # as an earlier version wrote it
    assert read_predictions(path)[0].names[0] == _NAMES[0]
    write_rejected(tmp_path, [Rejection("=x.png", "-")])
    assert (tmp_path / "rejected.csv").read_text() == "path,reason\n'=x.png,'-\n"
