"""Check of the operations in a SavedModel.

The file is only parsed: nothing in it is executed, and TensorFlow does not load it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import saved_model_pb2

from trainer.errors import DataError, UsageError
from trainer.export.operations import COMPUTING, SAVING

_MOST_NAMED = 5
_ATTRIBUTES_OF_SAVER = {"_construction_context", "_input_shapes"}
"""Attributes of the functions that TensorFlow generates to save and restore variables."""


def require_computing(folder: Path) -> None:
    """Raise UsageError if the SavedModel in `folder` may do more than compute, DataError if it is damaged.

    A SavedModel is a program: TensorFlow also has operations that read and write files, open connections and
    call Python. All of its functions are checked, called or not. A SavedModel of TensorFlow 1 is rejected
    too, because its operations run while it is loaded.
    """
    found: set[str] = set()
    for graph in _parse(folder).meta_graphs:
        if not graph.object_graph_def.nodes:
            raise UsageError(
                "The model is a SavedModel of TensorFlow 1, whose operations run while it is loaded; if you "
                "know who made it, add --trust.",
                received=folder,
            )
        found |= _operations(graph)
    if found:
        raise UsageError(
            "The model is a program that may do more than compute, such as read and write files. If you know "
            "who made it, add --trust.",
            received=f"{', '.join(sorted(found)[:_MOST_NAMED])} in {folder}",
        )


def _parse(folder: Path) -> Any:
    path, model = folder / "saved_model.pb", saved_model_pb2.SavedModel()
    try:
        model.ParseFromString(path.read_bytes())
    except (OSError, DecodeError) as error:
        raise DataError(
            "The model can't be read; it is damaged. Copy it again.", received=f"{path} ({str(error)[:100]})"
        ) from None
    if not model.meta_graphs:
        raise DataError("The model is empty; it is damaged. Copy it again.", received=path)
    return model


def _operations(graph: Any) -> set[str]:
    """Return the operations that are neither known to only compute nor part of TensorFlow's saver."""
    library = graph.graph_def.library
    functions = {each.signature.name: each.node_def for each in library.function}
    nodes = graph.graph_def.node
    saver = {graph.saver_def.save_tensor_name.partition(":")[0], graph.saver_def.restore_op_name}
    # Loading in TensorFlow 2 runs neither of the two saver nodes; any other node may be run.
    saving = _reachable(functions, [node for node in nodes if node.name in saver])
    others = [node for node in nodes if node.name not in saver]
    named = _named(graph.object_graph_def) | _called_implicitly(library) | (functions.keys() - saving)
    others += [node for name in named & functions.keys() for node in functions[name]]
    saving -= _reachable(functions, others) | named
    inside = {node.op for name in saving for node in functions[name]}
    outside = {node.op for name in functions.keys() - saving for node in functions[name]}
    outside |= {node.op for node in nodes}
    return (outside - COMPUTING - functions.keys()) | (inside - COMPUTING - SAVING - functions.keys())


def _named(objects: Any) -> set[str]:
    """Return the names of the functions that belong to an object of the SavedModel."""
    names = set(objects.concrete_functions)
    for node in objects.nodes:
        names |= {*node.function.concrete_functions, node.bare_concrete_function.concrete_function_name}
    return names


def _called_implicitly(library: Any) -> set[str]:
    """Return the names of the functions that may run although no node calls them.

    These are gradients, and functions with attributes: with api_implements, TensorFlow replaces a call to one
    function with a call to another.
    """
    names = {each.gradient_func for each in (*library.gradient, *library.registered_gradients)}
    return names | {
        each.signature.name for each in library.function if each.attr.keys() - _ATTRIBUTES_OF_SAVER
    }


def _reachable(functions: Mapping[str, Any], nodes: Iterable[Any]) -> set[str]:
    """Return the names of the functions that `nodes` call, directly or indirectly."""
    waiting = list(nodes)
    reached: set[str] = set()
    while waiting:
        node = waiting.pop()
        values = node.attr.values()
        named = {node.op, *(value.func.name for value in values)}
        named |= {each.name for value in values for each in value.list.func}
        named |= {each.decode("utf-8", "replace") for value in values for each in (value.s, *value.list.s)}
        for name in (named & functions.keys()) - reached:
            reached.add(name)
            waiting += functions[name]
    return reached
