#!/usr/bin/env bash
# Train with several processes on this machine, or on several machines.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

usage() {
    echo "usage: tools/dist_train.sh CONFIG GPUS [options of tools/train.py]"
    echo
    distributed_variables
    echo
    echo "example: tools/dist_train.sh configs/demo/vmamba-micro_digits-cls.py 2 --resume"
}

parse_usage 2 2 "$@"
run_distributed "$2" train.py "$1" "${@:3}"
