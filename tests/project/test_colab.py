"""Colab notebook: its structure, its commands, and a complete run with the Colab-only cell replaced."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from helpers.command_lines import parse
from helpers.photos import draw_photo

from trainer.runs.publish import verify
from trainer.storage import open_store

NOTEBOOK = Path(__file__).resolve().parents[2] / "scripts" / "colab.ipynb"
STEPS = 6


def read() -> dict[str, Any]:
    notebook: dict[str, Any] = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return notebook


def code_cells(notebook: dict[str, Any]) -> list[dict[str, Any]]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_notebook_has_six_steps_without_output() -> None:
    cells = code_cells(read())
    assert len(cells) == STEPS
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    titles = [cell["source"][0] for cell in read()["cells"] if cell["source"][0].startswith("## ")]
    assert [title.split()[1] for title in titles] == [f"{number}." for number in range(1, STEPS + 1)]
    # Only the first cell uses google.colab.
    assert [cell["metadata"].get("tags") for cell in cells] == [["colab"]] + [None] * (STEPS - 1)
    assert not any("google.colab" in line for cell in cells[1:] for line in cell["source"])


def test_commands_of_notebook_exist() -> None:
    lines = [line for cell in code_cells(read()) for line in cell["source"] if line.startswith("!trainer ")]
    assert len(lines) == 5
    for line in lines:
        words = shlex.split(line.replace("{SET}", "").replace("{", "").replace("}", ""))[1:]
        try:
            parse(words)
        except click.UsageError as error:
            pytest.fail(f"{line}: {error.format_message()}")


def make_data(folder: Path) -> Path:
    """Pack images in the layout of the paper's dataset: train and validation, cats and dogs."""
    for split, numbers in (("train", range(20)), ("validation", range(20, 28))):
        for name, shape in (("cats", "discs"), ("dogs", "squares")):
            (folder / "pets" / split / name).mkdir(parents=True)
            for number in numbers:
                draw_photo(shape, number % 10).resize((40 + number, 32)).save(
                    folder / "pets" / split / name / f"{number}.png"
                )
    return Path(shutil.make_archive(str(folder / "pets"), "zip", folder / "pets"))


@pytest.mark.engine
def test_notebook_runs_from_first_to_last_cell(tmp_path: Path) -> None:
    output, notebook = tmp_path / "runs", read()
    variables = {"DATA": str(make_data(tmp_path)), "OUTPUT": str(output), "SET": "--set train.epochs=1"}
    code_cells(notebook)[0]["source"] = [f"{name} = {value!r}\n" for name, value in variables.items()]
    text = "\n".join("".join(cell["source"]) + "\n" for cell in code_cells(notebook))
    (tmp_path / "colab.ipy").write_text(text, encoding="utf-8")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [sys.executable, "-m", "IPython", "--colors=NoColor", "colab.ipy"],
        env={**os.environ, "HOME": str(tmp_path), "PATH": path, "MPLBACKEND": "agg", "NO_COLOR": "1"},
        cwd=tmp_path, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr, done.stdout + done.stderr
    assert "Found 40 train and 16 validation images in 2 classes: cats, dogs" in done.stdout
    assert "filters: [16, 32, 64, 1024]" in done.stdout
    for name in ("paper", "cured"):
        assert verify(open_store(str(output / name))) == []
    assert "validation accuracy" in done.stdout
    assert "photo.jpg" in done.stdout.splitlines()[-1]
    assert (tmp_path / "compared.html").stat().st_size > 10_000
