"""A trained model to a SavedModel that stands alone.

In: the inference model, the class names, how images become pixels, and some encoded images.
Out: a folder that TensorFlow, TensorFlow Serving and Vertex AI load without this package.
It is loaded in a fresh process and compared before it gets its name.
"""

from trainer.export.golden import Golden, make_golden, verify_export
from trainer.export.load import LoadedModel, load_model
from trainer.export.served import FORMAT_VERSION, export_model

__all__ = [
    "FORMAT_VERSION",
    "Golden",
    "LoadedModel",
    "export_model",
    "load_model",
    "make_golden",
    "verify_export",
]
