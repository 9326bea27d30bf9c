#!/bin/bash
# sbatch configs/slurm/imagenet_reactnet_a.sh DIR
# ImageNet on one node of eight GPUs, from the folder of this repository; `sbatch --nodes=4 ...` takes four nodes. What
# follows DIR goes to `bnfree fit`. The batch of 256 is divided among the processes; for a larger one add
# --data.batch_size=128 --model.learning_rate_scaling=square_root, say.
#
# Three minutes before the time limit Lightning saves a checkpoint into the run directory and requeues the job, which
# then goes on from the newest checkpoint there. Logs of all attempts are in one file.
#SBATCH --job-name=bnfree-imagenet
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --signal=SIGUSR1@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.out
set -euo pipefail
data=${1:?give the folder of ImageNet, with train/ and val/ in it}
shift

# The same in every attempt and on every node: a requeued job keeps its number.
run=runs/imagenet_reactnet_a_step1/slurm-$SLURM_JOB_ID
newest=$(find "$run" -name last.ckpt -printf '%T@ %p\n' -o -name 'hpc_ckpt_*.ckpt' -printf '%T@ %p\n' 2>/dev/null |
  sort -n | tail -n 1 | cut -d ' ' -f 2- || true)

srun --kill-on-bad-exit=1 bnfree fit \
  --config imagenet_reactnet_a_step1 --config ddp_8gpu \
  --trainer.num_nodes="$SLURM_JOB_NUM_NODES" --data.data_dir="$data" --data.batch_size=$((256 / SLURM_NTASKS)) \
  --run_dir="$run" ${newest:+--ckpt_path="$newest"} "$@"
