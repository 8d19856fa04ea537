#!/usr/bin/env bash
# Runs lint, format and type checks, then pytest with the given flags. Creates .venv first if it does not exist.
# Pytest runs last, so that its summary is the last line of the output.
#
# One process per core, at most four, because each of them imports TensorFlow. All tests of a file run in the same
# process; the order of the files is in tests/conftest.py, slowest first. `-n 0` runs everything in one process, for
# a debugger or for measurements.
set -euo pipefail

# shellcheck source=scripts/setup_venv.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/setup_venv.sh"
setup_test_venv
cd -- "$ROOT"
"$VENV/bin/ruff" check
"$VENV/bin/ruff" format --check
"$VENV/bin/mypy"
exec "$VENV/bin/python" -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder "$@"
