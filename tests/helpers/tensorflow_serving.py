"""TensorFlow Serving's REST interface over a SavedModel, as its documentation describes it.

https://www.tensorflow.org/tfx/serving/api_rest: `POST /v1/models/NAME:predict` with rows in `instances` or
columns in `inputs`. A value {"b64": ...} is bytes. The name of the only input may be omitted. Outputs whose
name ends in _bytes are base64-encoded. Models are loaded from NAME/VERSION and called by signature, like in
the real server.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from helpers.serving import JsonHandler, serving


@contextmanager
def tensorflow_serving(models: Path) -> Iterator[str]:
    """Serve the newest version of each model in `models`; yield the server's address."""
    loaded = {
        folder.name: tf.saved_model.load(str(max(folder.iterdir(), key=lambda path: int(path.name))))
        for folder in models.iterdir()
    }
    with serving(ThreadingHTTPServer(("127.0.0.1", 0), _handler(loaded))) as server:
        yield f"http://127.0.0.1:{server.server_address[1]}"


def _handler(models: dict[str, Any]) -> type[JsonHandler]:
    class Handler(JsonHandler, BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.body())
            found = re.fullmatch(r"/v1/models/([^/:]+):predict", self.path)
            try:
                if found is None or found[1] not in models:
                    raise KeyError("Malformed request, or no such model")
                self.answer(200, predict(models[found[1]], asked))
            except (KeyError, TypeError, ValueError, tf.errors.OpError) as error:
                self.answer(400, {"error": str(error)[:300]})

    return Handler


def predict(model: Any, asked: dict[str, Any]) -> dict[str, Any]:
    """Return the response of the model to one request."""
    signature = model.signatures[asked.get("signature_name", "serving_default")]
    specs = signature.structured_input_signature[1]
    rows = asked.get("instances")
    columns = asked["inputs"] if rows is None else _columns(rows, list(specs))
    if not isinstance(columns, dict) or "b64" in columns:
        columns = {next(iter(specs)): columns}
    tensors = {name: tf.constant(_decoded(columns[name]), spec.dtype) for name, spec in specs.items()}
    answers = {name: _encoded(name, value.numpy()) for name, value in signature(**tensors).items()}
    if rows is None:
        return {"outputs": answers}
    names = list(answers)
    return {
        "predictions": [dict(zip(names, row, strict=True)) for row in zip(*answers.values(), strict=True)]
    }


def _columns(rows: list[Any], names: list[str]) -> dict[str, list[Any]]:
    is_named = isinstance(rows[0], dict) and "b64" not in rows[0]
    return {name: [row[name] if is_named else row for row in rows] for name in names}


def _decoded(value: Any) -> Any:
    if isinstance(value, dict):
        return base64.b64decode(value["b64"])
    return [_decoded(each) for each in value] if isinstance(value, list) else value


def _encoded(name: str, value: np.ndarray) -> list[Any]:
    if value.dtype != object:
        return list(value.tolist())
    if name.endswith("_bytes"):
        return [{"b64": base64.b64encode(each).decode()} for each in value]
    return [each.decode() for each in value]
