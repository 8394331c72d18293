#!/usr/bin/env bash
# The matrices that are too long for every change, some hours on two cores. Each row of
# scripts/results/test_long.md says when and with which versions it was run:
#
#   bash scripts/test_long.sh                 # all of them
#   bash scripts/test_long.sh "random kill"   # those whose title has these words
set -uo pipefail
CLIPKIT_EXTRAS=dev
source "$(dirname "$0")/setup.sh"
export OMP_NUM_THREADS=1
result=scripts/results/test_long.md
wanted=${1:-}
failed=0
with=$(python - <<'PY'
import datetime
import os
import platform
from importlib.metadata import version

packages = ("torch", "transformers", "datasets", "accelerate", "numpy", "pillow")
print(
    f"{datetime.date.today()}, {os.cpu_count()} cores, CPU, Python {platform.python_version()},",
    ", ".join(f"{name} {version(name)}" for name in packages),
)
PY
)

run() {  # run TITLE COMMAND…: a row of the table, in the place of the one that was there
    local title=$1 begin=$SECONDS outcome
    shift
    [[ $title == *"$wanted"* ]] || return 0
    if output=$("$@" 2>&1); then outcome=passed; else outcome=failed failed=1; fi
    echo "$output" >&2
    grep -vF "| $title |" "$result" > "$result.tmp"
    echo "| $title | $outcome: $(echo "$output" | grep -E '[0-9]+ (passed|failed)' | tail -n 1) | $((SECONDS - begin)) s | $with |" >> "$result.tmp"
    mv "$result.tmp" "$result"
}

CLIPKIT_MATRIX=full run "19 kinds of source × (0 or 2 workers, 1 or 2 ranks) × killed and resumed elsewhere as any of these" \
    python -m pytest tests/data/test_matrix.py
CLIPKIT_MATRIX=full run "42 random kill -9 of training: 1 rank, 2 ranks over DDP and over FSDP2" \
    python -m pytest tests/training/test_random_kills.py --timeout 3600
CLIPKIT_MATRIX=full run "kill -9 in each part of a sharded save" \
    python -m pytest tests/training/test_saving.py --timeout 3600
CLIPKIT_MATRIX=full run "losses, gradients and weights on 2 and 4 ranks are one process's" \
    python -m pytest tests/training/test_equivalence.py --timeout 3600
CLIPKIT_MATRIX=full run "200,000 images embedded, killed ten times with 1, 2 and 4 ranks; a store of 4 GB written" \
    python -m pytest tests/retrieval/test_embed.py --timeout 3600
CLIPKIT_MUTATIONS=2000 run "2,000 random mutations each of a tar and of JPEGs" \
    python -m pytest tests/data/test_mutations.py
CLIPKIT_MATRIX=full run "a store of 4.5 GB is indexed and searched in 300 MB of its own" \
    python -m pytest tests/retrieval/test_search_memory.py --timeout 1800
CLIPKIT_MATRIX=full run "20,000 requests to clipkit serve leave its memory as it was" \
    python -m pytest tests/serve/test_server.py -k memory --timeout 1800
CLIPKIT_MATRIX=full run "models of the size of ViT-B/32 by open_clip and transformers load and are exported, to 1e-5" \
    python -m pytest tests/interchange --timeout 1800
CLIPKIT_MATRIX=full run "compiled layers, the emoji data byte for byte, product codes, divergence and frozen ranks, the memory of a plan and of images; further signals, ranks and places to be killed at" \
    python -m pytest tests/models/test_forward.py tests/test_emoji_data.py \
    tests/retrieval/test_approximate.py tests/training/test_run.py tests/training/test_plan.py \
    tests/training/test_kills.py tests/training/test_stages.py tests/training/test_seeing.py \
    tests/losses/test_contrastive.py tests/data/test_hostile.py -m long --timeout 1800
CLIPKIT_MATRIX=full run "100,000 images and 500,000 texts are ranked in 2 GB beside their embeddings" \
    python -m pytest tests/evaluation/test_metrics.py -m long --timeout 7200
exit "$failed"
