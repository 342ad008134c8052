# Sourced by dist_*.sh and slurm_*.sh: what they share in starting train.py and test.py.
TOOLS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export PYTHONPATH="$(dirname "$TOOLS")${PYTHONPATH:+:$PYTHONPATH}"

# parse_usage NUMBER_NEEDED GPUS_AT ARGUMENTS...: calls `usage` where it was asked for, where
# arguments are missing, or where argument GPUS_AT (0: none) is no number of processes.
parse_usage() {
    local needed=$1 gpus_at=$2
    shift 2
    if [[ "${1:-}" == -h || "${1:-}" == --help ]]; then
        usage
        exit
    fi
    if [[ $# -lt $needed || ($gpus_at -gt 0 && ! "${!gpus_at:-}" =~ ^[1-9][0-9]*$) ]]; then
        usage >&2
        exit 2
    fi
}

distributed_variables() {
    cat <<'TEXT'
GPUS is the number of processes on this machine, one for each GPU (without GPUs
they share the CPU). For several machines run the same command on each, with
these variables:
  NNODES       number of machines (default: 1)
  NODE_RANK    number of this machine, from 0 (default: 0)
  MASTER_ADDR  address of machine 0 (default: 127.0.0.1)
  PORT         a free port on machine 0 (default: 29500)
  PYTHON       interpreter (default: python)
TEXT
}

# run_distributed GPUS TOOL ARGUMENTS...
run_distributed() {
    exec "${PYTHON:-python}" -m torch.distributed.run \
        --nnodes="${NNODES:-1}" \
        --node_rank="${NODE_RANK:-0}" \
        --master_addr="${MASTER_ADDR:-127.0.0.1}" \
        --master_port="${PORT:-29500}" \
        --nproc_per_node="$1" \
        "$TOOLS/$2" --launcher pytorch "${@:3}"
}

slurm_variables() {
    cat <<'TEXT'
Variables:
  GPUS           number of GPUs in all (default: 8)
  GPUS_PER_NODE  number of GPUs on each machine (default: 8, or GPUS if fewer)
  CPUS_PER_TASK  CPU cores for each GPU (default: 5)
  PYTHON         interpreter on the machines (default: python)
  SRUN_ARGS      more options for srun, e.g. "--time=24:00:00 --quotatype=auto"
TEXT
}

# run_slurm PARTITION JOB_NAME TOOL ARGUMENTS...
run_slurm() {
    local gpus=${GPUS:-8} more
    local per_node=${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}
    read -ra more <<<"${SRUN_ARGS:-}"
    exec srun -p "$1" \
        --job-name="$2" \
        --gres="gpu:$per_node" \
        --ntasks="$gpus" \
        --ntasks-per-node="$per_node" \
        --cpus-per-task="${CPUS_PER_TASK:-5}" \
        --kill-on-bad-exit=1 \
        "${more[@]}" \
        "${PYTHON:-python}" -u "$TOOLS/$3" --launcher=slurm "${@:4}"
}
