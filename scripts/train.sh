#!/usr/bin/env bash
# Trains: makes .venv beside this folder if it isn't there yet, then is `trainer train` with
# the same flags. With no flags it trains the embedded demo.
set -euo pipefail

# shellcheck source=scripts/setup_venv.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/setup_venv.sh"
setup_venv
exec "$VENV/bin/trainer" train "$@"
