#!/usr/bin/env bash
# One machine with GPUs: one process drives all of them. launch/gpu.sh [--dry_run] -- ARGUMENTS
#   GPUS    how many there must be: a machine that lost one is found out before it trains
#   PYTHON  the interpreter (.venv/bin/python)
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
parse "$@"
need GPUS 'the number of GPUs of this machine'
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PYTHONPATH=. JAX_NUM_DEVICES=$GPUS
run "${PYTHON:-.venv/bin/python}" -m msg_jax.main "${ARGUMENTS[@]}"
