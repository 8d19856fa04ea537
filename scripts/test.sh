#!/usr/bin/env bash
# Tests: format and lint, types, then pytest with the same flags. Makes .venv first if it isn't
# there yet. Pytest comes last, so that its closing line ends the output.
set -euo pipefail

# shellcheck source=scripts/setup_venv.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/setup_venv.sh"
setup_test_venv
cd -- "$ROOT"
"$VENV/bin/ruff" check
"$VENV/bin/ruff" format --check
"$VENV/bin/mypy"
exec "$VENV/bin/python" -m pytest "$@"
