#!/bin/bash
# Fine-tuning on all GPUs of one node. Submit it in the folder of the study, with the options of `spatialfeat finetune`:
#   sbatch PATH/scripts/slurm/finetune.sh --num-classes 7
#SBATCH --job-name=spatialfeat-finetune
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1      # one torchrun, which starts one process per GPU
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32       # decoding: see docs/scaling.md for how many cores keep a GPU busy
#SBATCH --mem=128G
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@180        # three minutes before the time is up: the study ends cleanly ...
#SBATCH --requeue                # ... and a requeued job goes on after its last whole epoch, by --resume below
#SBATCH --output=finetune-%j.log
set -euo pipefail

# The environment that spatialfeat is installed in.
source "${SPATIALFEAT_VENV:-.venv}/bin/activate"

srun torchrun --standalone --nproc-per-node="$SLURM_GPUS_ON_NODE" \
    -m spatialfeat finetune --resume "$@"
