#!/usr/bin/env bash
# Test on a Slurm cluster.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

usage() {
    echo "usage: tools/slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [options of tools/test.py]"
    echo
    slurm_variables
    echo
    echo "example: GPUS=8 tools/slurm_test.sh gpu vmamba CONFIG CHECKPOINT --tta"
}

parse_usage 4 0 "$@"
run_slurm "$1" "$2" test.py "$3" "$4" "${@:5}"
