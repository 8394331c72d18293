#!/usr/bin/env bash
# Trains on the shipped emoji on the CPU, evaluates, answers three text searches and writes a page.
# Does all its set-up. Run again, it goes on where it stopped, or shows the finished run again.
set -euo pipefail
CLIPKIT_EXTRAS=serve
source "$(dirname "$0")/setup.sh"

run=runs/emoji
say() { printf '\n\033[1m%s\033[0m\n' "$*"; }

say "1. Train: names of emoji and their pictures, from scratch"
clipkit train configs/emoji.yaml

say "2. Evaluate: 221 held-out combinations of person and skin tone, never seen in training"
clipkit eval "$run" --suite configs/suite-emoji.yaml
clipkit report "$run"

say "3. Search all emoji by text"
clipkit embed "$run" 'data/emoji/*.tar' "$run/store" --overwrite
clipkit index "$run/store"
echo
clipkit search "$run/store" -k 6 --html "$run/search.html" \
    "woman astronaut: dark skin tone" "flag: Japan" "red apple"

say "Done"
echo "the model   $run/model (loads with transformers and sentence-transformers, too)"
echo "the pages   $run/report.html and $run/search.html"
echo "to search   .venv/bin/clipkit serve"
