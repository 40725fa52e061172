#!/usr/bin/env bash
# A Cloud TPU slice: created or used again, installed, run on all workers, its output followed, deleted.
# launch/tpu_pod.sh [--dry_run] -- ARGUMENTS        (--workdir and data belong on gs:// or on a disk that all workers mount)
#   TPU_NAME, ZONE, ACCELERATOR   for example msg, us-west4-a, v5litepod-256
#   WORKERS     hosts of the slice (v5litepod-256: 64)
#   DEVICES     chips of the slice
#   VERSION     of the TPU software (v2-alpha-tpuv5-lite)
#   DELETE      1: delete the slice when the command has ended, however it ended
#   SPOT        1: a spot slice; when it is taken away, run this again: it continues
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
parse "$@"
need TPU_NAME 'the name of the TPU slice'
need ZONE 'its zone, for example us-west4-a'
need ACCELERATOR 'its type, for example v5litepod-256'
need WORKERS 'the number of its hosts'
need DEVICES 'the number of its chips'
cd "$(dirname "${BASH_SOURCE[0]}")/.."
tpu=(gcloud compute tpus tpu-vm)
everywhere=("${tpu[@]}" ssh "$TPU_NAME" --zone="$ZONE" --worker=all)

if ((DRY_RUN)) || ! "${tpu[@]}" describe "$TPU_NAME" --zone="$ZONE" > /dev/null 2>&1; then
  create=("${tpu[@]}" create "$TPU_NAME" --zone="$ZONE" --accelerator-type="$ACCELERATOR"
    --version="${VERSION:-v2-alpha-tpuv5-lite}")
  [[ "${SPOT:-0}" == 1 ]] && create+=(--spot)
  run "${create[@]}"
fi
# shellcheck disable=SC2317,SC2329  # called by the trap
delete() { run "${tpu[@]}" delete "$TPU_NAME" --zone="$ZONE" --quiet; }
[[ "${DELETE:-0}" == 1 ]] && trap delete EXIT

archive=$(mktemp -d)/msg_jax.tar.gz
run tar --exclude=.venv --exclude=runs --exclude=.git --exclude=.cache -czf "$archive" .
run "${tpu[@]}" scp "$archive" "$TPU_NAME:msg_jax.tar.gz" --zone="$ZONE" --worker=all
run "${everywhere[@]}" --command="mkdir -p msg_jax && tar -xzf msg_jax.tar.gz -C msg_jax && cd msg_jax && { [ -d .venv ] || \
python3 -m venv .venv; } && .venv/bin/pip install --quiet -r requirements.txt 'jax[tpu]'"
# JAX finds coordinator and place of each worker in the slice's metadata; the output of all workers comes back on this terminal.
run "${everywhere[@]}" --command="cd msg_jax && PYTHONPATH=. JAX_NUM_PROCESSES=$WORKERS JAX_NUM_DEVICES=$DEVICES \
.venv/bin/python -m msg_jax.main $(quoted "${ARGUMENTS[@]}")"
