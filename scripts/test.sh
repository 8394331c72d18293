#!/usr/bin/env bash
# Checks formatting, lints, type-checks and tests; does all its set-up. Arguments go to pytest:
#
#   bash scripts/test.sh                   # everything
#   bash scripts/test.sh -m "not slow"     # what takes seconds
set -euo pipefail
source "$(dirname "$0")/setup.sh" dev

ruff format --check .
ruff check .
mypy
pytest "$@"
