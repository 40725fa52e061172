#!/usr/bin/env bash
# Run a JobSet on GKE, from gke_jobset.yaml, and follow its output. Usage: launch/gke.sh [--dry_run] -- ARGUMENTS
#   JOB             name of the JobSet
#   IMAGE           container image with this project in /app and its requirements, including jax[tpu] (see Dockerfile)
#   BUCKET          Cloud Storage bucket, mounted at /workdir in all pods; --workdir is /workdir/JOB if you give none
#   TPU_ACCELERATOR, TPU_TOPOLOGY   labels of the node pool, e.g. tpu-v5-lite-podslice and 16x16
#   HOSTS, CHIPS_PER_HOST           e.g. 64 and 4
#   SERVICE_ACCOUNT  Kubernetes service account of the pods (default: default); needs roles/storage.objectUser on BUCKET
#   POLL_SEC         seconds between looks at the pods (default: 5)
# The cluster needs JobSet 0.6 or later, the GCS FUSE CSI driver and Workload Identity.
# The folder runs is /workdir, so scenes are in /workdir/data; put other data below /workdir too. Make BUCKET with
# --enable-hierarchical-namespace: only there is the renaming of a complete checkpoint atomic.
# The same command follows a JobSet that runs; other arguments, or a JobSet that has ended, replace it.
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
parse "$@"
need JOB 'the name of the JobSet'
need IMAGE 'the container image with this project in /app'
need BUCKET 'the Cloud Storage bucket to mount at /workdir'
need TPU_ACCELERATOR 'the label of the node pool, for example tpu-v5-lite-podslice'
need TPU_TOPOLOGY 'the topology of the slice, for example 16x16'
need HOSTS 'the number of hosts of the slice'
need CHIPS_PER_HOST 'the number of chips of each host'
default_workdir "/workdir/$JOB"
here=$(dirname "${BASH_SOURCE[0]}")
manifest=$(< "$here/gke_jobset.yaml")
arguments=""
for argument in "${ARGUMENTS[@]}"; do
  argument=${argument//\'/\'\'}
  arguments+="${arguments:+, }'$argument'"
done
SERVICE_ACCOUNT=${SERVICE_ACCOUNT:-default}
# shellcheck disable=SC2034  # the loop below reads it by name
DEVICES=$((HOSTS * CHIPS_PER_HOST))
for name in JOB IMAGE BUCKET SERVICE_ACCOUNT TPU_ACCELERATOR TPU_TOPOLOGY HOSTS CHIPS_PER_HOST DEVICES MOUNT_OPTIONS; do
  manifest=${manifest//"@$name@"/"${!name}"}
done
manifest=${manifest//"@ARGUMENTS@"/"$arguments"}
checksum=$(cksum <<< "$manifest")
checksum=${checksum%% *}
manifest=${manifest//"@CHECKSUM@"/"$checksum"}
if ((DRY_RUN)); then
  echo "$manifest"
  exit 0
fi

# Most of a JobSet cannot be changed, so another one is deleted first. Its processes get SIGTERM and save a checkpoint.
running=$(kubectl get jobset "$JOB" --ignore-not-found --output=jsonpath='{.metadata.annotations.checksum} {.status.terminalState}')
if [[ -n "$running" && "$running" != "$checksum " ]]; then
  kubectl delete jobset "$JOB" --cascade=foreground --wait
fi
kubectl apply -f - <<< "$manifest"

# A restart makes new pods with other names. Their first one has the output of process 0.
selector="jobset.sigs.k8s.io/jobset-name=$JOB,batch.kubernetes.io/job-completion-index=0"
started='{range .items[?(@.status.phase!="Pending")]}{.metadata.name}{"\n"}{end}'
followed=""
while true; do
  state=$(kubectl get jobset "$JOB" --output=jsonpath='{.status.terminalState}')
  pods=$(kubectl get pods --selector="$selector" --output=jsonpath="$started")
  pod=$(grep -vxF -e "$followed" <<< "$pods" | tail -n 1 || true)
  if [[ -n "$pod" ]]; then
    kubectl logs --follow "$pod" --container=msg-jax || true  # the pod may go while we read
    followed=$pod
  elif [[ "$state" == Completed ]]; then
    exit 0
  elif [[ -n "$state" ]]; then
    die "the JobSet $JOB has ended as $state: see the output above, and kubectl describe jobset $JOB."
  else
    sleep "${POLL_SEC:-5}"
  fi
done
