"""Private names of other libraries: they exist, they work, and no other module uses one."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import keras
import pytest
import requests
from google.api_core import exceptions as api
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage

import trainer
from trainer import compat
from trainer.errors import TrainerError
from trainer.spec import load_spec
from trainer.training.optimizer import build_optimizer

PACKAGE = Path(trainer.__file__).resolve().parent
PUBLIC = {"_replace", "_asdict", "_fields", "_exit"}
"""Names with an underscore that their libraries document: of named tuples, and os._exit."""
PRIVATE_MODULES = ("tensorflow.python", "keras.src")


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__") and name not in PUBLIC


def own_names(tree: ast.AST) -> set[str]:
    """Return the names that a module defines: functions, classes, fields and attributes of self."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names |= {node.attr} if ast.unparse(node.value) in ("self", "cls") else set()
    return names


def foreign_private_names(tree: ast.AST, inherited: set[str]) -> Iterator[str]:
    """Yield each private name of another library that a module uses.

    inherited: the names that all modules of the package define, which `self` may have from a base class.
    """
    own = own_names(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            known = own | inherited if ast.unparse(node.value) in ("self", "cls") else own
            if node.attr not in known:
                yield f"line {node.lineno}: {ast.unparse(node)}"
        elif isinstance(node, ast.Import | ast.ImportFrom):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names = [*modules, *(alias.name for alias in node.names)]
            if modules and modules[0].split(".")[0] == "trainer":
                continue
            if any(is_private(part) for name in names for part in name.split(".")) or any(
                name.startswith(PRIVATE_MODULES) for name in names
            ):
                yield f"line {node.lineno}: {ast.unparse(node)}"


def test_only_compat_uses_private_names_of_other_libraries() -> None:
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}
    inherited = set().union(*map(own_names, trees.values()))
    uses = {
        str(path.relative_to(PACKAGE)): [*foreign_private_names(tree, inherited)]
        for path, tree in trees.items()
    }
    assert [name for name, lines in uses.items() if lines] == ["compat.py"], uses


@pytest.mark.parametrize(
    "source",
    [
        "session = client._http",
        "client._connection.url",
        "def later():\n    optimizer._all_reduce_sum_gradients = list",
        "class Mine(keras.Optimizer):\n    def step(self):\n        return self._get_variable_index(1)",
        "from google.cloud.storage.retry import _should_retry",
        "from tensorflow.python.eager import context",
        "import keras.src.backend",
        "import requests._internal_utils",
    ],
)
def test_every_form_of_a_private_name_is_detected(source: str) -> None:
    assert len([*foreign_private_names(ast.parse(source), set())]) == 1


def test_own_private_names_are_allowed() -> None:
    source = """
from trainer.storage.gcs import _generation
class Mine:
    def __init__(self): self._own = self._inherited
    def copy(self, other): other._own = os._exit
"""
    assert [*foreign_private_names(ast.parse(source), {"_inherited"})] == []


def test_missing_private_name_is_an_error_with_the_version() -> None:
    class Optimizer:
        """An optimizer of a version of Keras without the hook."""

    with pytest.raises(TrainerError, match=r"keras \d[\d.]+ is not supported: it has no _all_reduce_sum"):
        compat.apply_without_all_reduce(Optimizer())


TWO_REPLICAS = """
import keras, tensorflow as tf
from trainer.spec import load_spec
from trainer.training.optimizer import build_optimizer
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
spec = load_spec(settings=["optimizer={name: sgd, learning_rate: 1.0, momentum: 0.0}"])
with strategy.scope():
    weight = keras.Variable([5.0])
    optimizer, _ = build_optimizer(spec.optimizer, [weight], 1, 1)
apply = lambda: optimizer.apply([tf.constant([2.0])], [weight])
tf.function(lambda: strategy.run(apply))()
print(float(weight.numpy()[0]))
"""


def test_gradients_are_applied_once_on_two_replicas() -> None:
    """Keras would all-reduce them again, and SGD would move the weight twice as far."""
    done = subprocess.run([sys.executable, "-c", TWO_REPLICAS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.splitlines()[-1]) == pytest.approx(5.0 - 2.0)


@pytest.mark.parametrize("name", ["sgd", "rmsprop", "adam", "adamw", "muon"])
def test_every_optimizer_has_the_hooks_of_keras(name: str) -> None:
    weights = [keras.Variable([[1.0, 2.0]]), keras.Variable([3.0])]
    spec = load_spec(settings=[f"optimizer.name={name}"])
    optimizer, _ = build_optimizer(spec.optimizer, weights, 1, 1)
    assert optimizer._all_reduce_sum_gradients is list
    assert [compat.index_of_variable(optimizer, weight) for weight in weights] == [0, 1]


@pytest.fixture
def client() -> storage.Client:
    return storage.Client(project="none", credentials=AnonymousCredentials())  # type: ignore[no-untyped-call]


def test_cloud_storage_client_has_a_session_and_download_urls(client: storage.Client) -> None:
    assert isinstance(compat.http_session(client), requests.Session)
    blob = client.bucket("photos").blob("cats/1.jpg")
    url = compat.download_url(blob, client, if_generation_match=7)
    assert url.startswith(client.api_endpoint)
    assert "cats%2F1.jpg" in url
    assert "ifGenerationMatch=7" in url
    assert compat.uploaded_name(blob) is None
    blob._set_properties({"name": "cats/1.jpg"})  # as after an upload
    assert compat.uploaded_name(blob) == "cats/1.jpg"


def test_cloud_storage_client_classifies_errors() -> None:
    retried: list[tuple[Exception, bool]] = [
        (api.ServiceUnavailable("busy"), True),  # type: ignore[no-untyped-call]
        (requests.ConnectionError("reset"), True),
        (api.Forbidden("no"), False),  # type: ignore[no-untyped-call]
        (ValueError("wrong"), False),
    ]
    assert [compat.is_retryable(error) for error, _ in retried] == [expected for _, expected in retried]


def test_click_context_has_the_words_of_the_command_line() -> None:
    words: list[str] = []

    class Group(click.Group):
        def invoke(self, ctx: click.Context) -> Any:
            words.extend(compat.command_words(ctx))
            return super().invoke(ctx)

    group = Group("main", commands=[click.Command("train", params=[click.Option(["--data"])])])
    group.main(["train", "--data", "photos"], standalone_mode=False)
    assert words == ["train", "--data", "photos"]


def test_tensorflow_can_abort_collectives() -> None:
    """In a process of its own, because the process can run no collective afterwards."""
    code = """
import tensorflow as tf
from trainer.compat import abort_collectives
tf.constant(1.0)
abort_collectives(tf.errors.UNAVAILABLE, "A peer has failed.")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
