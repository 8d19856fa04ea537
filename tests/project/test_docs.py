"""Checks of the documentation: generated pages, links, settings and messages."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner

from trainer.cli.app import cli
from trainer.errors import EXIT_CODES
from trainer.spec.describe import describe_sections
from trainer.spec.problems import known_keys

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
GENERATOR = ROOT / "scripts" / "docs.py"
PAGES = (ROOT / "README.md", ROOT / "README.pt-BR.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md")))
UNCOMMON = re.compile(
    r"\b(amid|anew|hears?|heard|hence|lies|mend(s|ed)?|tells?|told|thereof|whence|whoever)\b", re.IGNORECASE
)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_MESSAGE = re.compile(r"^\| `([^`]+)` \| \d+ \|", re.MULTILINE)


@pytest.fixture
def generator() -> ModuleType:
    """`scripts/docs.py` as a module."""
    found = importlib.util.spec_from_file_location("docs", GENERATOR)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def without_code(text: str) -> str:
    """Return Markdown without its code blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Return the anchors of the headings of a page, as GitHub names them."""
    headings = re.findall(r"^#+ (.+)$", without_code(page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path, text: str) -> Iterator[str]:
    """Yield every relative link of `text` whose file or anchor does not exist."""
    for target in _LINK.findall(without_code(text)):
        if target.startswith(("https://", "mailto:")):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        if not path.is_file() or (anchor and anchor not in anchors(path)):
            yield f"{page.relative_to(ROOT)}: {target}"


def literals() -> list[str]:
    """Return every string literal of the package, f-strings without their values."""
    texts = []
    for path in (ROOT / "trainer").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            strings = [part.value for part in parts if isinstance(part, ast.Constant)]
            texts.append("{}".join(text for text in strings if isinstance(text, str)))
    return texts


def test_generated_pages_are_up_to_date(generator: ModuleType) -> None:
    assert generator.outdated() == []


def test_outdated_page_is_reported_and_rewritten(
    generator: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in generator.PAGES:
        (tmp_path / name).write_text((DOCS / name).read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(generator, "DOCS", tmp_path)
    page = tmp_path / "settings.md"
    page.write_text(page.read_text(encoding="utf-8").replace("`train.epochs`", "`train.epoch`"), "utf-8")
    (tmp_path / "exit-codes.md").unlink()
    assert generator.outdated() == ["settings.md", "exit-codes.md"]
    monkeypatch.setattr(sys, "argv", ["docs.py", "--check"])
    assert generator.main() == 1
    monkeypatch.setattr(sys, "argv", ["docs.py"])
    assert generator.main() == 0
    assert generator.outdated() == []


def test_check_exits_with_0_when_all_pages_are_up_to_date() -> None:
    subprocess.run([sys.executable, GENERATOR, "--check"], check=True, capture_output=True)


def test_every_relative_link_and_anchor_resolves() -> None:
    broken = [link for page in PAGES for link in broken_links(page, page.read_text(encoding="utf-8"))]
    assert broken == []


@pytest.mark.parametrize("link", ["missing.md", "data.md#missing", "#missing", "../missing.png"])
def test_broken_link_is_detected(link: str) -> None:
    assert list(broken_links(DOCS / "gke.md", f"See [this]({link}).")) == [f"docs/gke.md: {link}"]


def test_every_page_is_linked_from_the_readme() -> None:
    linked = _LINK.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    pages = {f"docs/{page.name}" for page in DOCS.glob("*.md") if page.name != "index.md"}
    assert pages - set(linked) == set()


def build_site(folder: Path) -> subprocess.CompletedProcess[str]:
    """Build the site of `folder`, with mkdocs.yml and docs/, in its folder site/."""
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict"], cwd=folder,
        capture_output=True, text=True, check=False, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip


def test_the_site_builds_without_broken_links(tmp_path: Path) -> None:
    shutil.copytree(DOCS, tmp_path / "docs")
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    done = build_site(tmp_path)
    assert done.returncode == 0, done.stderr
    home = (tmp_path / "site" / "index.html").read_text("utf-8")
    assert 'src="pictures/report.png"' in home
    with open(tmp_path / "docs" / "gke.md", "a", encoding="utf-8") as page:
        page.write("\n[Broken](data.md#no-such-heading)\n")
    broken = build_site(tmp_path)
    assert broken.returncode == 1
    assert "no-such-heading" in broken.stderr


def test_settings_page_contains_every_setting() -> None:
    text = (DOCS / "settings.md").read_text(encoding="utf-8")
    rows = set(re.findall(r"^\| `([\w.]+)` \|", text, re.MULTILINE))
    sections = set(re.findall(r"^## ([\w.]+)", text, re.MULTILINE))
    assert set(known_keys()) - rows - sections == set()
    assert rows - set(known_keys()) == set()


def test_every_setting_has_a_description() -> None:
    settings = [setting for section in describe_sections() for setting in section.settings]
    assert len(settings) > 70
    assert [row.key for row in settings if not row.meaning] == []


def test_messages_of_troubleshooting_page_exist_in_package() -> None:
    messages = _MESSAGE.findall((DOCS / "troubleshooting.md").read_text(encoding="utf-8"))
    assert len(messages) > 30
    texts = literals()
    assert [message for message in messages if not any(message in text for text in texts)] == []


def test_settings_named_in_pages_exist() -> None:
    sections = "|".join(sorted({key.partition(".")[0] for key in known_keys() if "." in key}))
    named = {
        (page.name, key)
        for page in PAGES
        for key in re.findall(rf"`(?:--set )?((?:{sections})\.[a-z_.]+)", page.read_text(encoding="utf-8"))
        if not key.endswith((".py", ".md", ".yaml", ".json"))
    }
    assert len(named) > 40
    assert {(page, key) for page, key in named if key not in known_keys()} == set()


def test_portuguese_page_lists_every_exit_code() -> None:
    text = (ROOT / "README.pt-BR.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([\d, ]+) \|", text, re.MULTILINE)
    assert sorted(int(code) for row in rows for code in row.split(",")) == sorted(EXIT_CODES)


@pytest.mark.parametrize("group", [[], ["image"], ["submit"]])
def test_command_summaries_fit_in_80_columns(group: list[str]) -> None:
    done = CliRunner().invoke(cli, [*group, "--help"], terminal_width=80)
    lines = done.output.splitlines()
    names = cli.commands if not group else cli.commands[group[0]].commands
    assert all(any(line.startswith(f"  {name} ") for line in lines) for name in names)
    assert max(map(len, lines)) <= 80
    assert [line for line in lines[1:] if line.endswith("...")] == []


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield line and text of every docstring, those of fields too."""
    for node in ast.walk(tree):
        value = node.value if isinstance(node, ast.Expr) else None
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            yield value.lineno, value.value


@pytest.mark.parametrize("folder", ["trainer", "scripts", "tests"])
def test_docstrings_and_help_texts_use_common_words(folder: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {word[0]}"
        for path in sorted((ROOT / folder).rglob("*.py"))
        for line, text in docstrings(ast.parse(path.read_text(encoding="utf-8")))
        for word in UNCOMMON.finditer(text)
    ]
    assert found == []
    if folder == "trainer":
        assert [word[0] for word in UNCOMMON.finditer((DOCS / "commands.md").read_text())] == []
