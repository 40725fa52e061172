# shellcheck shell=bash
# What all launchers share. Each is called as   launch/NAME.sh [--dry_run] -- --config=configs/avp_rpo.py:tiny --workdir=...
# What follows -- goes to msg_jax.main as it is; everything about the machines comes from variables.

set -euo pipefail
DRY_RUN=0
ARGUMENTS=()

die() {
  echo "error: $*" >&2
  exit 2
}

# need NAME 'what it is': the variable must be set.
need() {
  [[ -n "${!1:-}" ]] || die "$1 is not set: $2."
}

parse() {
  while (($#)); do
    case "$1" in
      --dry_run) DRY_RUN=1 ;;
      --) shift; ARGUMENTS=("$@"); break ;;
      *) die "$1 is not known here: only --dry_run comes before --, and the arguments of msg_jax.main after it." ;;
    esac
    shift
  done
  ((${#ARGUMENTS[@]})) || die "the arguments of msg_jax.main are missing: give them after --, for example -- --config=configs/avp_rpo.py."
}

# run COMMAND...: does it, or only shows it.
run() {
  if ((DRY_RUN)); then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

# The arguments, quoted so that a shell gives them back.
quoted() {
  local text
  printf -v text '%q ' "$@"
  echo "${text% }"
}
