#!/bin/bash
# Training on two nodes with eight GPUs each under Slurm:  sbatch examples/cluster/slurm.sh
# One torchrun per node; the global batch does not depend on the number of GPUs. A requeued job
# resumes from its last complete checkpoint (--resume).
#SBATCH --job-name=vip-llava
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --output=%x-%j.log

set -euo pipefail

RECIPE=${RECIPE:-recipes/vicuna-7b/stage2.yaml}
DATA=${DATA:-playground/data}

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

srun torchrun \
    --nnodes "$SLURM_NNODES" \
    --nproc-per-node 8 \
    --rdzv-id "$SLURM_JOB_ID" \
    --rdzv-backend c10d \
    --rdzv-endpoint "$head:29500" \
    -m vip_llava train "$RECIPE" --data "$DATA" --resume
