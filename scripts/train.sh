#!/usr/bin/env bash
# Runs `trainer train` with the given flags; without flags it trains the embedded demo. Creates .venv first if it
# does not exist.
set -euo pipefail

# shellcheck source=scripts/setup_venv.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/setup_venv.sh"
setup_venv
exec "$VENV/bin/trainer" train "$@"
