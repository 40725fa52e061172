#!/usr/bin/env bash
# Create or reuse a Cloud TPU slice, install the project, run it on all workers, follow the output, delete the slice.
# Usage: launch/tpu_pod.sh [--dry_run] -- ARGUMENTS
#   TPU_NAME, ZONE, ACCELERATOR   e.g. msg, us-west4-a, v5litepod-256
#   WORKERS     hosts of the slice (v5litepod-256: 64)
#   DEVICES     chips of the slice
#   BUCKET      Cloud Storage bucket, mounted at /workdir on all workers; --workdir is /workdir/TPU_NAME if you give none.
#               Unset: put --workdir on a disk that all workers mount.
#   VERSION     TPU software version (default: the one of ACCELERATOR)
#   QUEUED      1: ask for the slice as a queued resource and wait until it is there
#   SPOT        1: create a spot slice. After a preemption, the same command makes a new one and continues.
#   DELETE      1: delete the slice when the command ends, even if it fails. What still runs on it saves a checkpoint first.
#               The run must be elsewhere: in BUCKET, on gs://, or on a shared disk.
#   POLL_SEC    seconds between looks at a queued resource (default: 30)
# Ctrl-C stops the processes on all workers, which save a checkpoint first. They go on if the connection is lost; the same
# command then stops them and continues from their checkpoint.
# With BUCKET the folder runs is /workdir, so scenes are in /workdir/data; put other data below /workdir too. Make BUCKET with
# --enable-hierarchical-namespace: only there is the renaming of a complete checkpoint atomic.
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
parse "$@"
need TPU_NAME 'the name of the TPU slice'
need ZONE 'the zone of the slice, for example us-west4-a'
need ACCELERATOR 'the type of the slice, for example v5litepod-256'
need WORKERS 'the number of hosts of the slice'
need DEVICES 'the number of chips of the slice'
case "$ACCELERATOR" in
  v5litepod-*) VERSION=${VERSION:-v2-alpha-tpuv5-lite} ;;
  v5p-*) VERSION=${VERSION:-v2-alpha-tpuv5} ;;
  v6e-*) VERSION=${VERSION:-v2-alpha-tpuv6e} ;;
  v[234]-*) VERSION=${VERSION:-tpu-ubuntu2204-base} ;;
esac
need VERSION "the TPU software version of $ACCELERATOR"
QUEUED=${QUEUED:-0}
[[ -z "${BUCKET:-}" ]] || default_workdir "/workdir/$TPU_NAME"
if [[ "${DELETE:-0}" == 1 && ! " ${ARGUMENTS[*]}" =~ \ --?workdir[=\ ](gs:/)?/ ]]; then
  die "DELETE=1 deletes the disk of the slice, and the run with it: set BUCKET, or give --workdir=gs://BUCKET/FOLDER or a" \
    "folder on a shared disk."
fi
cd "$(dirname "${BASH_SOURCE[0]}")/.."
tpu=(gcloud compute tpus tpu-vm)
queue=(gcloud compute tpus queued-resources)
everywhere=("${tpu[@]}" ssh "$TPU_NAME" --zone="$ZONE" --worker=all)

node_state() { "${tpu[@]}" describe "$TPU_NAME" --zone="$ZONE" --format='value(state)' 2> /dev/null || true; }
request_state() { "${queue[@]}" describe "$TPU_NAME" --zone="$ZONE" --format='value(state.state)' 2> /dev/null || true; }

create() {
  local flags=("$TPU_NAME" --zone="$ZONE" --accelerator-type="$ACCELERATOR")
  [[ "${SPOT:-0}" != 1 ]] || flags+=(--spot)
  if ((QUEUED)); then
    run "${queue[@]}" create "${flags[@]}" --node-id="$TPU_NAME" --runtime-version="$VERSION"
  else
    run "${tpu[@]}" create "${flags[@]}" --version="$VERSION"
  fi
}

delete() {
  if ((QUEUED)); then
    run "${queue[@]}" delete "$TPU_NAME" --zone="$ZONE" --force --quiet
  else
    run "${tpu[@]}" delete "$TPU_NAME" --zone="$ZONE" --quiet
  fi
}

# A preempted slice still exists, but nothing runs on it again: delete it and make another.
get_slice() {
  local node request=""
  node=$(node_state)
  ((QUEUED)) && request=$(request_state)
  case "$node $request" in
    PREEMPTED* | TERMINATED* | *SUSPENDING | *SUSPENDED | *FAILED)
      delete
      create
      ;;
    " ") create ;;
    "READY ") ((QUEUED == 0)) || die "the slice $TPU_NAME was made without a queue: unset QUEUED, or delete it." ;;
    READY*) ;;
    *) ((QUEUED)) || die "the slice $TPU_NAME is $node: wait until it is READY, or delete it." ;;
  esac
  ((QUEUED)) || return 0
  while request=$(request_state) && [[ "$request" != ACTIVE ]]; do
    [[ "$request" != FAILED && "$request" != SUSPENDED ]] || die "the request for $TPU_NAME is $request: describe it with gcloud."
    echo "The request for $TPU_NAME is ${request:-unknown}."
    sleep "${POLL_SEC:-30}"
  done
}

if ((DRY_RUN)); then
  create
else
  get_slice
fi
worker=msg_jax/launch/tpu_worker.sh
scratch=$(mktemp -d)
# shellcheck disable=SC2317,SC2329  # the trap calls it
clean_up() {
  rm -rf "$scratch"
  [[ "${DELETE:-0}" == 1 ]] || return 0
  "${everywhere[@]}" --command="{ [ ! -x $worker ] || $worker stop; }" || true
  delete
}
trap clean_up EXIT

run tar --exclude=./{.venv,.git,.cache,runs,data_cache,logs,out} -czf "$scratch/msg_jax.tar.gz" .
run "${tpu[@]}" scp "$scratch/msg_jax.tar.gz" "$TPU_NAME:msg_jax.tar.gz" --zone="$ZONE" --worker=all
run "${everywhere[@]}" --command="{ [ ! -x $worker ] || $worker stop; } && mkdir -p msg_jax && tar -xzf msg_jax.tar.gz -C msg_jax && \
BUCKET=${BUCKET:-} $worker install"
# JAX reads the coordinator and each worker's index from the slice's metadata.
main=("${everywhere[@]}" --command="PYTHONPATH=. JAX_NUM_PROCESSES=$WORKERS JAX_NUM_DEVICES=$DEVICES $worker run \
.venv/bin/python -m msg_jax.main $(quoted "${ARGUMENTS[@]}")")
if ((DRY_RUN)); then
  run "${main[@]}"
  exit 0
fi
stopping=""
# shellcheck disable=SC2317,SC2329  # the trap calls it
stop() {
  echo "Stopping the processes on all workers." >&2
  "${everywhere[@]}" --command="$worker stop" &
  stopping=$!
}
trap stop INT TERM
"${main[@]}" &
wait_for $!
[[ -z "$stopping" ]] || wait "$stopping" || true
exit "$CODE"
