#!/usr/bin/env bash
# Run a workload on a cluster made with xpk. Usage: launch/xpk.sh [--dry_run] -- ARGUMENTS
#   CLUSTER, PROJECT, ZONE   name, Google Cloud project and zone of the cluster
#   WORKLOAD                 name of the workload
#   TPU_TYPE                 type of the slice, e.g. v5litepod-256
#   HOSTS, DEVICES           hosts and chips of the slice, e.g. 64 and 256
#   BASE_IMAGE               image with the requirements installed; this project is added on top
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
need BASE_IMAGE 'an image with the requirements installed'
cd "$(dirname "${BASH_SOURCE[0]}")/.."
run xpk workload create --cluster="$CLUSTER" --project="$PROJECT" --zone="$ZONE" --workload="$WORKLOAD" \
  --tpu-type="$TPU_TYPE" --num-slices=1 --base-docker-image="$BASE_IMAGE" --script-dir=. --restart-on-user-code-failure \
  --max-restarts=100 --env="JAX_NUM_PROCESSES=$HOSTS" --env="JAX_NUM_DEVICES=$DEVICES" --env=PYTHONPATH=. \
  --command="python -m msg_jax.main $(quoted "${ARGUMENTS[@]}")"
