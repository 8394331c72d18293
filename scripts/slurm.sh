#!/usr/bin/env bash
# A run on several nodes, one torchrun a node; sbatch options override those below:
#
#   sbatch --nodes 4 scripts/slurm.sh configs/vit-b-16-nodes.yaml output=/shared/runs/mine
#
# The folder of the run must be on a disk that all nodes share. Five minutes before the time limit
# Slurm sends SIGTERM, which torchrun hands on (and gives its ranks half a minute): all save at one
# step and end with 75, and the job is queued again; the same command goes on. Not run by us on
# Slurm yet.
#SBATCH --job-name clipkit
#SBATCH --nodes 2
#SBATCH --ntasks-per-node 1
#SBATCH --gpus-per-node 8
#SBATCH --cpus-per-task 96
#SBATCH --time 24:00:00
#SBATCH --signal TERM@300
#SBATCH --requeue
set -uo pipefail

output=$(clipkit train "$@" --print-config | sed -n 's/^output: //p')
[ -n "$output" ] || exit 2 # what is wrong with the config has been said
status=$output/status.json
before=$(cat "$status" 2> /dev/null)
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
code=0
srun torchrun --nnodes "$SLURM_NNODES" --nproc-per-node "${GPUS_PER_NODE:-${SLURM_GPUS_ON_NODE:-8}}" \
    --rdzv-backend c10d --rdzv-endpoint "$first:29500" --rdzv-id "$SLURM_JOB_ID" \
    -m clipkit train "$@" || code=$?
# torchrun hides the exit code of its ranks; status.json has it, if it is not that of an earlier start.
if [ "$(cat "$status" 2> /dev/null)" != "$before" ] && grep -q '"exit_code": 75' "$status"; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
