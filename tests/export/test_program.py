"""Checks of SavedModels as programs: models loaded without trust, and damaged files."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
from helpers.published_model import CLASSES, export, export_writer
from tensorflow.core.protobuf import saved_model_pb2

from trainer.errors import DataError, UsageError
from trainer.export import load_model
from trainer.export.load import COMPUTING, require_computing

RESIDUAL = "model={family: residual, stem_filters: 4, filters: [8], blocks: [1], average_mirror: true}"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tmp_path_factory.mktemp("exported") / "model")


@pytest.mark.parametrize(
    "settings",
    [
        ["data={resize: crop, interpolation: bicubic, crop_fraction: 0.8}", "train.precision=bfloat16"],
        ["data.resize=pad", "data.interpolation=nearest", RESIDUAL],
        ["model={family: plain, filters: [4], binary_unit: true, average_mirror: true}"],
        ["model={family: airbench, filters: [8], average_mirror: true}"],
    ],
    ids=["crop", "residual", "binary", "airbench"],
)
def test_exported_models_have_only_allowed_operations(settings: list[str], tmp_path: Path) -> None:
    require_computing(export(tmp_path / "model", *settings))


def test_model_that_writes_files_is_loaded_only_with_trust(model: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    writer = export_writer(tmp_path / "writer", model, victim)
    with pytest.raises(UsageError, match=r"add --trust\. Received: WriteFile in"):
        load_model(writer)
    assert not victim.exists()
    trusted = load_model(writer, trust=True)
    assert trusted.class_names == CLASSES
    trusted.classify([b"any"])
    assert victim.exists()
    assert load_model(model).class_names == CLASSES  # a model exported by this package needs no trust


class CheckpointReader(tf.Module):  # type: ignore[misc]
    """Module that reads a checkpoint with the operation TensorFlow uses to restore variables."""

    @tf.function(input_signature=[])  # type: ignore[misc]
    def read(self) -> tf.Tensor:
        """Read a tensor from a checkpoint outside the model."""
        return tf.raw_ops.RestoreV2(
            prefix="/elsewhere", tensor_names=["secret"], shape_and_slices=[""], dtypes=[tf.float32]
        )


def test_saver_operations_are_allowed_only_in_the_saver(tmp_path: Path) -> None:
    reader = CheckpointReader()
    reader.variable = tf.Variable(1.0)
    tf.saved_model.save(reader, str(tmp_path / "plain"))
    with pytest.raises(UsageError, match="Received: RestoreV2 in"):
        require_computing(tmp_path / "plain")


def change_saver(folder: Path, change: Callable[[Any, Any], None]) -> Path:
    """Apply `change` to the SavedModel's function library and its restore function; return `folder`."""
    path, model = folder / "saved_model.pb", saved_model_pb2.SavedModel()
    model.ParseFromString(path.read_bytes())
    library = model.meta_graphs[0].graph_def.library
    change(library, next(each for each in library.function if "traced_restore" in each.signature.name))
    path.write_bytes(model.SerializeToString())
    return folder


def replace_others(library: Any, restore: Any) -> None:
    """Let `api_implements` substitute a caller of `restore` for another function in TensorFlow."""
    caller = library.function.add()
    caller.signature.name = "caller"
    caller.attr["api_implements"].s = b"classify"
    caller.node_def.add(name="call", op=restore.signature.name)
    restore.node_def.add(name="back", op="caller")


def add_gradient(library: Any, restore: Any) -> None:
    library.gradient.add(function_name="any", gradient_func=restore.signature.name)


def add_registered_gradient(library: Any, restore: Any) -> None:
    library.registered_gradients.add(gradient_func=restore.signature.name, registered_op_type="any")


def add_name_in_attribute(library: Any, restore: Any) -> None:
    other = next(each for each in library.function if "classify" in each.signature.name)
    other.node_def[0].attr["function"].s = restore.signature.name.encode()


@pytest.mark.parametrize(
    "change", [replace_others, add_gradient, add_registered_gradient, add_name_in_attribute]
)
def test_saver_functions_that_other_code_may_call_are_rejected(
    change: Callable[[Any, Any], None], model: Path, tmp_path: Path
) -> None:
    require_computing(change_saver(shutil.copytree(model, tmp_path / "same"), lambda library, restore: None))
    changed = change_saver(shutil.copytree(model, tmp_path / "changed"), change)
    with pytest.raises(UsageError, match="Received: RestoreV2 in"):
        require_computing(changed)


def test_allowlist_has_no_operations_on_files_networks_or_python() -> None:
    words = ("File", "Dataset", "Iterator", "PyFunc", "Rpc", "Send", "Recv", "Print", "Save", "Restore", "Io")
    named = {name for name in COMPUTING if any(word in name for word in words)}
    # Pipelines over tensors of the graph, whose functions are checked too.
    assert named == {
        "BatchDatasetV2", "ConcatenateDataset", "DatasetToSingleElement", "IgnoreErrorsDataset", "MapDataset",
        "OptionsDataset", "ParallelMapDatasetV2", "TensorDataset", "TensorSliceDataset",
    }  # fmt: skip
    assert "XlaCallModule" not in COMPUTING


def test_damaged_model_file_is_reported(model: Path, tmp_path: Path) -> None:
    damaged = shutil.copytree(model, tmp_path / "damaged")
    path, whole = damaged / "saved_model.pb", (model / "saved_model.pb").read_bytes()
    of_an_operation = whole.index(b"ReadVariableOp") + 7
    for offset in (1, of_an_operation, len(whole) // 2):
        path.write_bytes(whole[:offset] + bytes([whole[offset] ^ 16]) + whole[offset + 1 :])
        with suppress(DataError):  # harmless if the bit is in an unused name
            load_model(damaged, trust=True)
    for text in (b"", b"no model at all", whole[: len(whole) // 2]):
        path.write_bytes(text)
        for trust in (False, True):
            with pytest.raises(DataError, match="The model is damaged"):
                load_model(damaged, trust)
    path.write_bytes(whole.replace(b"ReadVariableOp", b"ReadVaviableOp"))
    with pytest.raises(DataError, match="Op type not registered 'ReadVaviableOp'"):
        load_model(damaged, trust=True)
    with pytest.raises(UsageError, match="Received: ReadVaviableOp in"):
        load_model(damaged)
