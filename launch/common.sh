# shellcheck shell=bash
# Shared functions of the launchers. Usage:   launch/NAME.sh [--dry_run] -- --config=configs/avp_rpo.py:tiny --workdir=...
# Everything after -- goes to msg_jax.main unchanged. Environment variables describe the machines.

set -euo pipefail
DRY_RUN=0
ARGUMENTS=()
# GCS FUSE must not cache metadata, or a host does not see what another writes: on TPU machines entries never expire by default.
# Folders are renamed when they are complete. On TPU VMs, tpu_worker.sh gives the same options.
# shellcheck disable=SC2034  # gke.sh and xpk.sh read it
MOUNT_OPTIONS=implicit-dirs,rename-dir-limit=200000,metadata-cache:ttl-secs:0,metadata-cache:negative-ttl-secs:0

die() {
  echo "error: $*" >&2
  exit 2
}

# need NAME 'what it is': exit with an error unless the variable is set.
need() {
  [[ -n "${!1:-}" ]] || die "$1 is not set: $2."
}

parse() {
  while (($#)); do
    case "$1" in
      --dry_run) DRY_RUN=1 ;;
      --) shift; ARGUMENTS=("$@"); break ;;
      *) die "unknown option $1: put only --dry_run before --, and the arguments of msg_jax.main after it." ;;
    esac
    shift
  done
  ((${#ARGUMENTS[@]})) || die "no arguments of msg_jax.main: add them after --, for example -- --config=configs/avp_rpo.py."
  local argument
  for argument in "${ARGUMENTS[@]}"; do
    [[ "$argument" != *workdir=*://* || "$argument" == *workdir=gs://* ]] || die "$argument is no folder and not on gs://."
  done
}

# default_workdir FOLDER: add --workdir=FOLDER to the arguments unless they have a workdir.
default_workdir() {
  local argument
  for argument in "${ARGUMENTS[@]}"; do
    [[ "$argument" =~ ^--?workdir(=|$) ]] && return
  done
  ARGUMENTS+=("--workdir=$1")
}

# run COMMAND...: run the command; with --dry_run, print it.
run() {
  if ((DRY_RUN)); then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

# quoted ARGUMENTS...: print the arguments, quoted for another shell.
quoted() {
  local text
  printf -v text '%q ' "$@"
  echo "${text% }"
}

# wait_for PID: wait until the process has ended, also while traps run; set CODE to its exit code.
# shellcheck disable=SC2034  # the callers read CODE
wait_for() {
  local ended=0
  until ((ended)); do
    kill -0 "$1" 2> /dev/null || ended=1
    CODE=0
    wait "$1" || CODE=$?
  done
}
