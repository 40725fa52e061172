#!/usr/bin/env bash
# Run a workload on a cluster made with xpk 0.7.1 or later. Usage: launch/xpk.sh [--dry_run] -- ARGUMENTS
#   CLUSTER, PROJECT, ZONE   name, Google Cloud project and zone of the cluster
#   WORKLOAD                 name of the workload
#   TPU_TYPE                 type of the slice, e.g. v5litepod-256
#   HOSTS, DEVICES           hosts and chips of the slice, e.g. 64 and 256
#   BUCKET                   Cloud Storage bucket, mounted at /workdir; --workdir is /workdir/WORKLOAD if you give none
#   BASE_IMAGE               image made from Dockerfile; xpk adds this project's files, without those in .dockerignore
# The folder runs is /workdir, so scenes are in /workdir/data; put other data below /workdir too. Make BUCKET with
# --enable-hierarchical-namespace: only there is the renaming of a complete checkpoint atomic.
# A workload that is preempted, drained or has lost a host restarts and continues. One that ends with code 1 (a bug) or 2 (a
# mistake of the user) does not.
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
parse "$@"
need CLUSTER 'the name of the cluster'
need PROJECT 'the Google Cloud project of the cluster'
need ZONE 'the zone of the cluster'
need WORKLOAD 'the name of the workload'
need TPU_TYPE 'the type of the slice, for example v5litepod-256'
need HOSTS 'the number of hosts of the slice'
need DEVICES 'the number of chips of the slice'
need BUCKET 'the Cloud Storage bucket to mount at /workdir'
need BASE_IMAGE 'an image made from Dockerfile'
default_workdir "/workdir/$WORKLOAD"
cd "$(dirname "${BASH_SOURCE[0]}")/.."
where=(--cluster="$CLUSTER" --project="$PROJECT" --zone="$ZONE")
storage=${BUCKET//[^a-z0-9-]/-}
run xpk storage attach "$storage" "${where[@]}" --type=gcsfuse --bucket="$BUCKET" --mount-point=/workdir --readonly=false \
  --auto-mount=false --size=1 --no-prefetch-metadata --mount-options="$MOUNT_OPTIONS"
# xpk restarts on 42 and on 127 to 255; 75 is a lost process. Its shell sends SIGTERM to the command that exec makes ours.
run xpk workload create "${where[@]}" --workload="$WORKLOAD" --tpu-type="$TPU_TYPE" --num-slices=1 --storage="$storage" \
  --base-docker-image="$BASE_IMAGE" --script-dir=. --max-restarts=100 --restart-on-exit-codes=75,143 \
  --termination-grace-period-seconds=60 --env="JAX_NUM_PROCESSES=$HOSTS" --env="JAX_NUM_DEVICES=$DEVICES" \
  --env=JAX_START_TIMEOUT_SEC=3600 --env=PYTHONPATH=. \
  --command="ln -sfn /workdir runs && exec python -m msg_jax.main $(quoted "${ARGUMENTS[@]}")"
