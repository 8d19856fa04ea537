#!/usr/bin/env bash
# Writes tests/helpers/vertex_descriptors.binpb: the message types of Vertex AI and Cloud Scheduler from Google's
# clients. The clients themselves have dozens of dependencies, so the tests do not install them.
set -euo pipefail

cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

tools=$(mktemp -d)
trap 'rm -rf -- "$tools"' EXIT
python3 -m venv "$tools/venv"
"$tools/venv/bin/python" -m pip --quiet --disable-pip-version-check install \
    google-cloud-aiplatform==2.7.0 google-cloud-scheduler==2.21.0
"$tools/venv/bin/python" - tests/helpers/vertex_descriptors.binpb <<'PYTHON'
import sys
from pathlib import Path

from google.cloud.aiplatform_v1.types import CustomJob
from google.cloud.scheduler_v1.types import Job
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

files = {}


def add(file):
    for dependency in file.dependencies:
        add(dependency)
    if file.name not in files:
        files[file.name] = FileDescriptorProto()
        file.CopyToProto(files[file.name])


for kind in (CustomJob, Job):
    add(kind.pb(kind()).DESCRIPTOR.file)
Path(sys.argv[1]).write_bytes(FileDescriptorSet(file=files.values()).SerializeToString(deterministic=True))
print(f"{len(files)} files")
PYTHON
