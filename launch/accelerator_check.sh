#!/usr/bin/env bash
# Check a machine with a GPU or a TPU in eight minutes, without data or weights: benchmarks/accelerator.py, whose table comes
# last. Usage: launch/accelerator_check.sh [--dry_run] -- [--json=FILE] [--budget=SECONDS] [--small]
#   PYTHON  interpreter (default: .venv/bin/python)
# Where nothing can be installed, bring a folder of wheels; on a machine with the same Python and with the network,
#   pip download --dest=wheels '.[cuda]'       (or '.[tpu]')
# and there, pip install --no-index --find-links=wheels 'msg_jax[cuda]'. The large ones are jax-cuda13-pjrt,
# jax-cuda13-plugin and NVIDIA's cuBLAS, cuDNN, cuFFT, cuSOLVER, cuSPARSE, NCCL, NVRTC, nvJitLink and nvcc; on TPUs libtpu.
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
(($#)) || set -- -- --json=accelerator.json
parse "$@"
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PYTHONPATH=.
run exec "${PYTHON:-.venv/bin/python}" benchmarks/accelerator.py "${ARGUMENTS[@]}"
