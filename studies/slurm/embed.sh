#!/bin/bash
# Fills a store on several machines of a SLURM cluster: one Ray node a machine, one worker a GPU.
#
#     sbatch --nodes=4 --gpus-per-node=8 studies/slurm/embed.sh IMAGES --store STORE --backbone NAME
#
# Arguments are those of `substyle embed`. All machines must see IMAGES and STORE under these paths. On the first of them
# Ray starts with the command, on the others as its workers' host; all end when the command has ended.
#SBATCH --job-name=substyle
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --output=substyle-%j.log
set -euo pipefail

PORT=${RAY_PORT:-6379}
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# other users of the network could run code in your name, if Ray did not ask for a token
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN
RAY_AUTH_TOKEN=$(head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n')
export RAY_USAGE_STATS_ENABLED=0
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=${RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT:-300}

srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 \
    ray symmetric-run --address "$head:$PORT" --min-nodes "$SLURM_JOB_NUM_NODES" --include-dashboard=false -- \
    substyle embed "$@" --set executor.address=auto
