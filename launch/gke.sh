#!/usr/bin/env bash
# Run a JobSet on GKE, from gke_jobset.yaml. Usage: launch/gke.sh [--dry_run] -- ARGUMENTS
#   JOB             name of the JobSet
#   IMAGE           container image with this project in /app and its requirements, including jax[tpu]
#   TPU_ACCELERATOR, TPU_TOPOLOGY   labels of the node pool, e.g. tpu-v5-lite-podslice and 16x16
#   HOSTS, CHIPS_PER_HOST           e.g. 64 and 4
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
parse "$@"
need JOB 'the name of the JobSet'
need IMAGE 'the container image with this project in /app'
need TPU_ACCELERATOR 'the label of the node pool, for example tpu-v5-lite-podslice'
need TPU_TOPOLOGY 'the topology of the slice, for example 16x16'
need HOSTS 'the number of hosts of the slice'
need CHIPS_PER_HOST 'the number of chips of each host'
here=$(dirname "${BASH_SOURCE[0]}")
manifest=$(< "$here/gke_jobset.yaml")
arguments=""
for argument in "${ARGUMENTS[@]}"; do
  argument=${argument//\'/\'\'}
  arguments+="${arguments:+, }'$argument'"
done
# shellcheck disable=SC2034  # the loop below reads it by name
DEVICES=$((HOSTS * CHIPS_PER_HOST))
for name in JOB IMAGE TPU_ACCELERATOR TPU_TOPOLOGY HOSTS CHIPS_PER_HOST DEVICES; do
  manifest=${manifest//"@$name@"/"${!name}"}
done
manifest=${manifest//"@ARGUMENTS@"/"$arguments"}
if ((DRY_RUN)); then
  echo "$manifest"
else
  kubectl apply -f - <<< "$manifest"
  kubectl logs --follow --selector="jobset.sigs.k8s.io/jobset-name=$JOB,batch.kubernetes.io/job-completion-index=0" \
    --pod-running-timeout=30m
fi
