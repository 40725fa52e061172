#!/usr/bin/env bash
# Run on one machine; one process drives all of its GPUs. Usage: launch/gpu.sh [--dry_run] -- ARGUMENTS
#   GPUS    number of GPUs; a machine that has lost one fails before it trains
#   PYTHON  interpreter (default: .venv/bin/python)
# SIGTERM saves a checkpoint and ends the run with code 143; the same command continues.
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
parse "$@"
need GPUS 'the number of GPUs of this machine'
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PYTHONPATH=. JAX_NUM_DEVICES=$GPUS
run exec "${PYTHON:-.venv/bin/python}" -m msg_jax.main "${ARGUMENTS[@]}"
