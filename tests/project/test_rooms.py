"""Package structure: import order of the top-level modules, sizes, and imports at startup."""

from __future__ import annotations

import ast
import graphlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import trainer

PACKAGE = Path(trainer.__file__).resolve().parent

ROOMS = (
    "errors",
    "sanitize",
    "shutdown",
    "compat",
    "recipes",
    "spec",
    "storage",
    "distributed",
    "data",
    "augment",
    "model",
    "ranking",
    "training",
    "export",
    "evaluate",
    "audit",
    "report",
    "runs",
    "compare",
    "release",
    "tune",
    "launch",
    "run",
    "cli",
    "task",
    "api",
)
"""Top-level modules in import order: each may import only those above it."""

LIGHT_ROOMS = ("errors", "sanitize", "shutdown", "compat", "distributed", "recipes", "spec", "launch", "cli")
"""Must import fast, and without TensorFlow installed."""

WITH_TENSORFLOW = ("trainer.distributed.devices",)
"""The modules of light rooms that need it."""

HEAVY = ("tensorflow", "keras", "google.cloud")

MAY_READ_ENVIRONMENT = ("cli", "task", "distributed")

LONGEST_FUNCTION = 40
LONGEST_FILE = 600
"""In lines, for a file on one subject; most are far shorter."""

MODULES = sorted(PACKAGE.rglob("*.py"))


def dotted(path: Path) -> str:
    """Return the dotted import name of the module at `path`."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(name: str) -> str:
    """Return the room (top-level module) of a dotted name; "" is the package itself."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else ""


def imported_rooms(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Yield (room, line) of every import from this package, at any level of the module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "trainer":
            # In `from trainer import x`, x may be a room, or a name of the package such as __version__.
            names = [f"trainer.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            continue
        yield from ((room_of(name), node.lineno) for name in names if name.split(".")[0] == "trainer")


def wrong_arrows(tree: ast.AST, module: str) -> list[str]:
    """Return a message for each import of `module` from a room below its own."""
    own = room_of(module) or "api"  # the package offers the names of its Python interface
    return [
        f"line {line}: {own} imports {room}, which is below it"
        for room, line in imported_rooms(tree)
        if room in ROOMS and room != own and ROOMS.index(room) > ROOMS.index(own)
    ]


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yield every function and method."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def reads_environment(node: ast.AST) -> bool:
    """Return whether this node accesses os.environ or os.getenv, or imports one of them."""
    names = {"environ", "environb", "getenv", "getenvb"}
    if isinstance(node, ast.Attribute):
        return node.attr in names and isinstance(node.value, ast.Name) and node.value.id == "os"
    return (
        isinstance(node, ast.ImportFrom) and node.module == "os" and any(a.name in names for a in node.names)
    )


def run_fresh(code: str) -> str:
    """Run `code` in a new Python process and return its output."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def parse(path: Path) -> ast.Module:
    """Return the syntax tree of the module at `path`."""
    return ast.parse(path.read_text(encoding="utf-8"))


def test_every_module_belongs_to_a_listed_package() -> None:
    rooms = {room_of(dotted(path)) for path in MODULES} - {""}
    assert rooms - set(ROOMS) == set()


def imported_modules(tree: ast.AST, known: set[str]) -> set[str]:
    """Return the modules of this package that `tree` imports at any level, except for type checking."""
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found & known


def test_modules_do_not_import_each_other_in_cycles() -> None:
    known = {dotted(path) for path in MODULES} - {"trainer"}
    graph = {dotted(path): imported_modules(parse(path), known) - {dotted(path)} for path in MODULES}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


def test_imports_are_absolute() -> None:
    relative = [
        f"{dotted(path)}:{node.lineno}"
        for path in MODULES
        for node in ast.walk(parse(path))
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert relative == []


def test_imports_point_only_upwards() -> None:
    wrong = {dotted(path): wrong_arrows(parse(path), dotted(path)) for path in MODULES}
    assert {name: arrows for name, arrows in wrong.items() if arrows} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import trainer.run",
        "from trainer import run",
        "from trainer.run import run",
        "def later():\n    from trainer.run import run",
    ],
)
def test_import_from_below_is_detected_in_every_form(source: str) -> None:
    assert len(wrong_arrows(ast.parse(source), "trainer.data.fetch")) == 1


def test_imports_from_above_and_from_own_package_are_allowed() -> None:
    own = "from trainer.data import items"
    source = f"from trainer import __version__\nfrom trainer.errors import DataError\n{own}"
    assert wrong_arrows(ast.parse(source), "trainer.data.fetch") == []


def test_functions_are_short() -> None:
    lengths = {
        f"{dotted(path)}.{function.name}": (function.end_lineno or function.lineno) - function.lineno + 1
        for path in MODULES
        for function in functions(parse(path))
    }
    assert {name: length for name, length in lengths.items() if length > LONGEST_FUNCTION} == {}


def test_files_are_short() -> None:
    root = PACKAGE.parent
    files = [*MODULES, *(root / "tests").rglob("*.py"), *(root / "scripts").rglob("*")]
    lengths = {
        str(path.relative_to(root)): len(path.read_text(encoding="utf-8").splitlines())
        for path in files
        if path.suffix in (".py", ".sh")
    }
    assert {name: length for name, length in lengths.items() if length > LONGEST_FILE} == {}


def test_modules_have_docstrings() -> None:
    assert [dotted(path) for path in MODULES if not ast.get_docstring(parse(path))] == []


def test_package_contains_no_assert() -> None:
    assertions = [
        f"{dotted(path)}:{node.lineno}"
        for path in MODULES
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Assert)
    ]
    assert assertions == []


def test_only_listed_packages_read_the_environment() -> None:
    readers = {dotted(path) for path in MODULES if any(map(reads_environment, ast.walk(parse(path))))}
    assert {name for name in readers if room_of(name) not in MAY_READ_ENVIRONMENT} == set()


@pytest.mark.parametrize("room", LIGHT_ROOMS)
def test_light_packages_import_neither_tensorflow_nor_a_cloud_client(room: str) -> None:
    names = [dotted(path) for path in MODULES if room_of(dotted(path)) == room and path.name != "__main__.py"]
    imports = "".join(f"import {name}\n" for name in names if name not in WITH_TENSORFLOW)
    loaded = run_fresh(f"import json, sys\n{imports}print(json.dumps(list(sys.modules)))")
    assert [name for name in HEAVY if name in json.loads(loaded)] == []


def test_help_imports_only_click() -> None:
    code = """
import json, sys
before = set(sys.modules)
from trainer.cli import main
sys.argv = ["trainer", "--help"]
try:
    main()
except SystemExit as stop:
    code = stop.code or 0
print("\\n" + json.dumps([code, sorted({name.partition(".")[0] for name in set(sys.modules) - before})]))
"""
    code_and_names = json.loads(run_fresh(code).splitlines()[-1])
    assert code_and_names[0] == 0
    assert set(code_and_names[1]) - set(sys.stdlib_module_names) == {"trainer", "click"}
