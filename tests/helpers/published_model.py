"""Published run with an untrained model, and a SavedModel that writes a file."""

from __future__ import annotations

import json
from pathlib import Path

import tensorflow as tf

from trainer.export import export_model
from trainer.model import build_inference_model
from trainer.runs.publish import publish
from trainer.spec import load_spec
from trainer.storage.store import Store

SIDE = 16
CLASSES = ("cats", "dogs")
PLAIN = "{family: plain, filters: [4]}"


def export(folder: Path, *settings: str) -> Path:
    """Export an untrained model to `folder`."""
    spec = load_spec(settings=[f"data.image_size={SIDE}", f"model={PLAIN}", *settings])
    export_model(folder, build_inference_model(spec.model, len(CLASSES), SIDE), CLASSES, spec.data)
    return folder


class Writer(tf.Module):  # type: ignore[misc]
    """SavedModel with the signatures of an exported model that writes a file when it is called."""

    def __init__(self, victim: Path, assets: Path) -> None:
        super().__init__()
        self.victim = str(victim)
        self.assets = [tf.saved_model.Asset(str(path)) for path in sorted(assets.iterdir())]

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")])  # type: ignore[misc]
    def classify(self, image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        """Write the file and return probabilities of 0.9 and 0.1."""
        tf.io.write_file(self.victim, "written by a model")
        return {"probabilities": tf.tile([[0.9, 0.1]], [tf.shape(image_bytes)[0], 1])}

    @tf.function(input_signature=[tf.TensorSpec([None, SIDE, SIDE, 3], tf.float32, name="pixels")])  # type: ignore[misc]
    def classify_pixels(self, pixels: tf.Tensor) -> dict[str, tf.Tensor]:
        """Return probabilities of 0.9 and 0.1."""
        return {"probabilities": tf.tile([[0.9, 0.1]], [tf.shape(pixels)[0], 1])}


def export_writer(folder: Path, model: Path, victim: Path) -> Path:
    """Export a `Writer` of the file `victim` to `folder`, with the metadata of `model`."""
    writer = Writer(victim, model / "assets")
    signatures = {"serving_default": writer.classify, "pixels": writer.classify_pixels}
    tf.saved_model.save(writer, str(folder), signatures=signatures)
    return folder


def publish_run(output: Store, name: str, model: Path) -> Store:
    """Publish a run of `model` in `output`; return its store."""
    run = output.below(name)
    files = {f"model/{path.relative_to(model)}": path for path in sorted(model.rglob("*")) if path.is_file()}
    for file, path in files.items():
        run.upload(path, file)
    run.write("metrics.json", b'{"validation/accuracy": 0.5}')
    run.write("spec.yaml", b"recipe: demo\n")
    publish(output, name, model.parent / "nothing")
    return run


def swap_classes(run: Store) -> None:
    """Swap the class names in the metadata of the run's model; the file keeps its length."""
    found = run.read("model/assets/model.json")
    about = json.loads(found.data if found else b"{}")
    about["class_names"] = about["class_names"][::-1]
    run.write("model/assets/model.json", (json.dumps(about, indent=2, ensure_ascii=False) + "\n").encode())
