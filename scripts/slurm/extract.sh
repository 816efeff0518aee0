#!/bin/bash
# Extraction as an array of single-GPU jobs, which start whenever a GPU is free. Submit it in the folder of the study,
# with the options of `spatialfeat extract`:
#   sbatch PATH/scripts/slurm/extract.sh --weights best_spatial_study_weights.pth
# Shards that failed or were cut off are submitted again alone, and compute only what is missing:
#   sbatch --array=3,7 PATH/scripts/slurm/extract.sh ...
#SBATCH --job-name=spatialfeat-extract
#SBATCH --array=1-8              # must be 1-N for the N below
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-task=1
#SBATCH --cpus-per-task=16
#SBATCH --mem=32G
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --output=extract-%A-%a.log
set -euo pipefail

# Not SLURM_ARRAY_TASK_COUNT: an array submitted again for some shards has fewer tasks, but as many shards.
N=8

# The environment that spatialfeat is installed in.
source "${SPATIALFEAT_VENV:-.venv}/bin/activate"

srun spatialfeat extract --shard "$SLURM_ARRAY_TASK_ID/$N" "$@"
