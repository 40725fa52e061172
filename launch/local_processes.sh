#!/usr/bin/env bash
# Run N processes on this machine, as on N hosts. Usage: launch/local_processes.sh [--dry_run] -- ARGUMENTS
#   PROCESSES  number of processes
#   DEVICES    virtual CPU devices per process; unset: the devices of JAX_LOCAL_DEVICE_IDS, or of the machine
#   PORT       port of the first process (default: 12355); the next port is used too
#   LOGS       folder for the output of processes 1, 2, ... (default: logs); process 0 writes to the terminal
#   PYTHON     interpreter (default: .venv/bin/python)
#   GRACE_SEC  seconds the others may run after one has failed (default: 120)
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
parse "$@"
need PROCESSES 'the number of processes to start'
cd "$(dirname "${BASH_SOURCE[0]}")/.."
logs=${LOGS:-logs}
run mkdir -p "$logs"
common=(PYTHONPATH=. JAX_NUM_PROCESSES="$PROCESSES" JAX_COORDINATOR_ADDRESS="localhost:${PORT:-12355}")
if [[ -n "${DEVICES:-}" ]]; then
  # Without the second flag, FFTs of jax 0.11 wait for each other on more devices than cores.
  common+=(JAX_PLATFORMS=cpu XLA_FLAGS="--xla_force_host_platform_device_count=$DEVICES --xla_cpu_multi_thread_eigen=false"
    JAX_NUM_DEVICES="$((DEVICES * PROCESSES))")
fi
pids=()
for ((i = 0; i < PROCESSES; i++)); do
  command=(env "${common[@]}" JAX_PROCESS_ID="$i" "${PYTHON:-.venv/bin/python}" -m msg_jax.main "${ARGUMENTS[@]}")
  if ((DRY_RUN)); then
    run "${command[@]}"
  elif ((i == 0)); then
    "${command[@]}" &
    pids+=($!)
  else
    "${command[@]}" > "$logs/process_$i.log" 2>&1 &
    pids+=($!)
  fi
done
((DRY_RUN)) && exit 0

# shellcheck disable=SC2317,SC2329  # the trap calls it
forward() { kill -TERM "${pids[@]}" 2> /dev/null || true; }
trap forward TERM INT

worst=0
deadline=0
running=("${pids[@]}")
while ((${#running[@]})); do
  left=()
  for pid in "${running[@]}"; do
    if kill -0 "$pid" 2> /dev/null; then
      left+=("$pid")
    else
      code=0
      wait "$pid" || code=$?
      if ((code == 143)); then  # stopped by SIGTERM, everything is saved
        ((worst)) || worst=$code
      elif ((code)); then
        for ((i = 0; i < PROCESSES; i++)); do
          [[ "${pids[i]}" == "$pid" ]] && echo "error: process $i exited with code $code; see its output." >&2
        done
        ((worst)) || worst=$code
        ((deadline)) || deadline=$((SECONDS + ${GRACE_SEC:-120}))
      fi
    fi
  done
  running=(${left[@]+"${left[@]}"})
  if ((deadline && SECONDS > deadline && ${#running[@]})); then
    echo "error: killed ${#running[@]} processes that still ran ${GRACE_SEC:-120} s after another had failed." >&2
    kill -KILL "${running[@]}" 2> /dev/null || true
    deadline=0
  fi
  sleep 0.5 || true
done
exit "$worst"
