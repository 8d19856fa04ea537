"""Export of a trained model to a self-contained SavedModel.

`export_model` writes a folder that TensorFlow, TensorFlow Serving and Vertex AI load without this package.
`verify_export` loads it in a fresh process and compares its predictions, before it is moved to its final
name.
"""

from trainer.export.golden import Golden, make_golden, verify_export
from trainer.export.load import Answers, LoadedModel, load_model
from trainer.export.novelty import NoveltyDetector
from trainer.export.served import FORMAT_VERSION, Confidence, export_model

__all__ = [
    "FORMAT_VERSION",
    "Answers",
    "Confidence",
    "Golden",
    "LoadedModel",
    "NoveltyDetector",
    "export_model",
    "load_model",
    "make_golden",
    "verify_export",
]
