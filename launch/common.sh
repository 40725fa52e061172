# shellcheck shell=bash
# Shared functions of the launchers. Usage:   launch/NAME.sh [--dry_run] -- --config=configs/avp_rpo.py:tiny --workdir=...
# Everything after -- goes to msg_jax.main unchanged. Environment variables describe the machines.

set -euo pipefail
DRY_RUN=0
ARGUMENTS=()

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
