#!/usr/bin/env bash
# Create or reuse a Cloud TPU slice, install the project, run it on all workers, follow the output, delete the slice.
# Usage: launch/tpu_pod.sh [--dry_run] -- ARGUMENTS    Put --workdir and data on gs:// or on a disk that all workers mount.
#   TPU_NAME, ZONE, ACCELERATOR   e.g. msg, us-west4-a, v5litepod-256
#   WORKERS     hosts of the slice (v5litepod-256: 64)
#   DEVICES     chips of the slice
#   VERSION     TPU software version (default: v2-alpha-tpuv5-lite)
#   DELETE      1: delete the slice when the command ends, even if it fails
#   SPOT        1: create a spot slice; after a preemption, the same command continues
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
parse "$@"
need TPU_NAME 'the name of the TPU slice'
need ZONE 'the zone of the slice, for example us-west4-a'
need ACCELERATOR 'the type of the slice, for example v5litepod-256'
need WORKERS 'the number of hosts of the slice'
need DEVICES 'the number of chips of the slice'
cd "$(dirname "${BASH_SOURCE[0]}")/.."
tpu=(gcloud compute tpus tpu-vm)
everywhere=("${tpu[@]}" ssh "$TPU_NAME" --zone="$ZONE" --worker=all)

if ((DRY_RUN)) || ! "${tpu[@]}" describe "$TPU_NAME" --zone="$ZONE" > /dev/null 2>&1; then
  create=("${tpu[@]}" create "$TPU_NAME" --zone="$ZONE" --accelerator-type="$ACCELERATOR"
    --version="${VERSION:-v2-alpha-tpuv5-lite}")
  [[ "${SPOT:-0}" == 1 ]] && create+=(--spot)
  run "${create[@]}"
fi
# shellcheck disable=SC2317,SC2329  # the trap calls it
delete() { run "${tpu[@]}" delete "$TPU_NAME" --zone="$ZONE" --quiet; }
[[ "${DELETE:-0}" == 1 ]] && trap delete EXIT

archive=$(mktemp -d)/msg_jax.tar.gz
run tar --exclude=.venv --exclude=runs --exclude=.git --exclude=.cache -czf "$archive" .
run "${tpu[@]}" scp "$archive" "$TPU_NAME:msg_jax.tar.gz" --zone="$ZONE" --worker=all
run "${everywhere[@]}" --command="mkdir -p msg_jax && tar -xzf msg_jax.tar.gz -C msg_jax && cd msg_jax && { [ -d .venv ] || \
python3 -m venv .venv; } && .venv/bin/pip install --quiet -r requirements.txt 'jax[tpu]'"
# JAX reads the coordinator and each worker's index from the slice's metadata. This terminal shows the output of all workers.
run "${everywhere[@]}" --command="cd msg_jax && PYTHONPATH=. JAX_NUM_PROCESSES=$WORKERS JAX_NUM_DEVICES=$DEVICES \
.venv/bin/python -m msg_jax.main $(quoted "${ARGUMENTS[@]}")"
