#!/usr/bin/env bash
# Test with several processes on this machine, or on several machines.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

usage() {
    echo "usage: tools/dist_test.sh CONFIG CHECKPOINT GPUS [options of tools/test.py]"
    echo
    distributed_variables
    echo
    echo "example: tools/dist_test.sh CONFIG CHECKPOINT 8 --tta"
}

parse_usage 3 3 "$@"
run_distributed "$3" test.py "$1" "$2" "${@:4}"
