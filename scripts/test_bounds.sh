#!/usr/bin/env bash
# Runs the fast tests with every dependency at the lower bound that pyproject.toml states for it,
# and writes scripts/results/test_bounds.md. Arguments go to pytest:
#
#   bash scripts/test_bounds.sh                # what takes seconds
#   bash scripts/test_bounds.sh tests/data     # a part of it
#
# The packages of [project] and of its extras are pinned; what only testing needs is the newest.
# CLIPKIT_PYTHON names the interpreter to make .venv-bounds with (default: python3).
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
venv=.venv-bounds
result=scripts/results/test_bounds.md

wanted="$(cksum < pyproject.toml) $PWD"
if [ "$(cat $venv/.clipkit-bounds 2> /dev/null)" != "$wanted" ]; then
    rm -rf $venv
    "${CLIPKIT_PYTHON:-python3}" -m venv $venv || exit 1
    $venv/bin/python scripts/lower_bounds.py > $venv/bounds.txt || exit 1
    $venv/bin/python -m pip install --quiet --disable-pip-version-check \
        --constraint $venv/bounds.txt --editable ".[dev]" || exit 1
    echo "$wanted" > $venv/.clipkit-bounds
fi
export PATH="$PWD/$venv/bin:$PATH" OMP_NUM_THREADS=1

begin=$SECONDS
python -m pytest -n 2 --dist loadfile -m "not slow" "$@" 2>&1 | tee $venv/tests.log
outcome=${PIPESTATUS[0]}
if [ $# -eq 0 ]; then
    python scripts/lower_bounds.py --report $venv/tests.log $((SECONDS - begin)) > $result
fi
exit "$outcome"
