#!/usr/bin/env bash
# Tests: format and lint, types, then pytest with the same flags. Makes .venv first if it isn't
# there yet. Pytest comes last, so that its closing line ends the output.
#
# A process a core, four at most, each of which needs TensorFlow's memory; a file's tests stay in one, and
# the files begin in the order of tests/conftest.py: the slowest first, so that all processes end together.
# `-n 0` keeps all in this process, for a debugger or for what should have the machine for itself.
set -euo pipefail

# shellcheck source=scripts/setup_venv.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/setup_venv.sh"
setup_test_venv
cd -- "$ROOT"
"$VENV/bin/ruff" check
"$VENV/bin/ruff" format --check
"$VENV/bin/mypy"
exec "$VENV/bin/python" -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder "$@"
