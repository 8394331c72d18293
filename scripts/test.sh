#!/usr/bin/env bash
# Checks formatting, lints, type-checks and tests; does all its set-up. Arguments go to pytest:
#
#   bash scripts/test.sh                   # everything
#   bash scripts/test.sh -m "not slow"     # what takes seconds
set -euo pipefail
CLIPKIT_EXTRAS=dev
source "$(dirname "$0")/setup.sh"

python -m ruff format --check .
python -m ruff check .
python -m mypy
python -m pytest "$@"
