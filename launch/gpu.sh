#!/usr/bin/env bash
# Run on one machine; one process drives all of its GPUs. Usage: launch/gpu.sh [--dry_run] -- ARGUMENTS
#   GPUS    number of GPUs; a machine that has lost one fails before it trains
#   PYTHON  interpreter (default: .venv/bin/python)
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
parse "$@"
need GPUS 'the number of GPUs of this machine'
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PYTHONPATH=. JAX_NUM_DEVICES=$GPUS
run "${PYTHON:-.venv/bin/python}" -m msg_jax.main "${ARGUMENTS[@]}"
