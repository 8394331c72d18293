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
# Two at a time: most of these tests wait for processes that start. What a file shares is made once.
OMP_NUM_THREADS=1 python -m pytest -n 2 --dist loadfile "$@"
