#!/usr/bin/env bash
# Train on a Slurm cluster.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

usage() {
    echo "usage: tools/slurm_train.sh PARTITION JOB_NAME CONFIG WORK_DIR [options of tools/train.py]"
    echo
    slurm_variables
    echo
    echo "example: GPUS=16 tools/slurm_train.sh gpu vmamba CONFIG work_dirs/vmamba --amp"
}

parse_usage 4 0 "$@"
run_slurm "$1" "$2" train.py "$3" --work-dir="$4" "${@:5}"
