#!/usr/bin/env bash
# Runs on every worker of a TPU slice; tpu_pod.sh copies it there and calls it.
#   tpu_worker.sh install        make .venv with the interpreter and the requirements; mount BUCKET, if set, at /workdir
#   tpu_worker.sh run COMMAND    run the command and show its output, each line with this worker's number
#   tpu_worker.sh stop           send SIGTERM to the command that runs and wait until it has saved its work
# A command goes on when the connection is lost. Its output stays in msg_jax.log.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
UV=0.13.9
STOP_SEC=${STOP_SEC:-120}

running() { [[ -f msg_jax.pid ]] && grep --quiet --text msg_jax.main "/proc/$(< msg_jax.pid)/cmdline" 2> /dev/null; }

install() {
  local uv=$HOME/.local/bin/uv
  [[ -x "$uv" ]] || curl -LsSf "https://astral.sh/uv/$UV/install.sh" | sh
  "$uv" venv --quiet --allow-existing --python=3.12 .venv  # the image may have Python 3.10, which is too old for JAX
  "$uv" pip install --quiet --python=.venv/bin/python --editable '.[tpu,gcs]'
  [[ -z "${BUCKET:-}" ]] || mount_bucket
}

mount_bucket() {
  [[ -e runs || -L runs ]] || ln -s /workdir runs  # relative paths of the configurations, such as runs/data
  [[ "$(findmnt --noheadings --output=SOURCE /workdir)" != "$BUCKET" ]] || return 0
  if ! command -v gcsfuse > /dev/null; then
    local key=/usr/share/keyrings/cloud.google.asc
    curl -fsSL https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee "$key" > /dev/null
    echo "deb [signed-by=$key] https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -cs) main" \
      | sudo tee /etc/apt/sources.list.d/gcsfuse.list > /dev/null
    sudo apt-get -qq -o DPkg::Lock::Timeout=300 update
    sudo apt-get -qq -o DPkg::Lock::Timeout=300 install --yes gcsfuse > /dev/null
  fi
  sudo mkdir -p /workdir
  sudo chown "$(id -u)" /workdir
  gcsfuse --implicit-dirs --rename-dir-limit=200000 --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 \
    "$BUCKET" /workdir
}

run() {
  local worker pid code=0
  worker=$(curl -fsS -H 'Metadata-Flavor: Google' \
    http://metadata.google.internal/computeMetadata/v1/instance/attributes/agent-worker-number)
  : > msg_jax.log  # before `tail` looks for it
  nohup "$@" >> msg_jax.log 2>&1 < /dev/null &
  pid=$!
  echo "$pid" > msg_jax.pid
  tail --pid="$pid" --sleep-interval=0.5 --lines=+1 --follow msg_jax.log | sed --unbuffered "s/^/[worker $worker] /" || true
  wait "$pid" || code=$?
  rm -f msg_jax.pid
  exit "$code"
}

stop() {
  running || return 0
  kill -TERM "$(< msg_jax.pid)" || true
  for ((i = 0; i < STOP_SEC; i++)); do
    running || return 0
    sleep 1
  done
  kill -KILL "$(< msg_jax.pid)" || true
}

"$@"
