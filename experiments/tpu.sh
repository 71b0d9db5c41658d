#!/usr/bin/env bash
# Train on a TPU VM or a pod, data and results on a bucket. See docs/running.md.
#   BUCKET=b PROJECT=p ZONE=z TYPE=v4-8 experiments/tpu.sh start -- SCRIPT ARGUMENTS...
#   ... experiments/tpu.sh log | stop
set -euo pipefail
: "${PROJECT:?set it to the cloud project}" "${ZONE:?set it to the zone}"
NAME=${NAME:-infomask} TYPE=${TYPE:-v4-8} RUNTIME=${RUNTIME:-tpu-ubuntu2204-base}
HERE=$(dirname "$0")
REPOSITORY=${REPOSITORY:-$(git -C "$HERE" remote get-url origin 2>/dev/null || true)}
REVISION=${REVISION:-$(git -C "$HERE" rev-parse HEAD 2>/dev/null || true)}
WHERE=(--project "$PROJECT" --zone "$ZONE")

on_all() { gcloud compute tpus tpu-vm ssh "$NAME" "${WHERE[@]}" --worker all --command "$1"; }

case "${1:-}" in
start)
  : "${BUCKET:?set it to the bucket that holds data and runs}" "${REPOSITORY:?set it to the URL of the source}"
  shift
  [ "${1:-}" = -- ] && shift
  [ $# -gt 0 ] || { echo "error: expected -- SCRIPT ARGUMENTS..." >&2; exit 1; }
  gcloud compute tpus queued-resources describe "$NAME" "${WHERE[@]}" > /dev/null 2>&1 ||
    gcloud compute tpus queued-resources create "$NAME" "${WHERE[@]}" --node-id "$NAME" \
      --accelerator-type "$TYPE" --runtime-version "$RUNTIME" --spot
  state=
  until [ "$state" = ACTIVE ]; do
    state=$(gcloud compute tpus queued-resources describe "$NAME" "${WHERE[@]}" --format 'value(state.state)')
    echo "queued resource: $state"
    case "$state" in FAILED | SUSPENDED) exit 1 ;; esac
    [ "$state" = ACTIVE ] || sleep 30
  done
  on_all "set -e
    command -v gcsfuse > /dev/null || { echo 'error: install gcsfuse on the hosts (see the docs of Cloud Storage)'; exit 1; }
    command -v python3.11 > /dev/null || { sudo apt-get -qq update && sudo apt-get -qq install -y python3.11-venv; }
    sudo mkdir -p /mnt/bucket && sudo chown \"\$USER\" /mnt/bucket
    flock -n ~/train.lock true || { echo 'error: a run is going on: log shows it, stop ends it'; exit 1; }
    # Without caches of what is there: every host reads what another has just written.
    mountpoint -q /mnt/bucket || gcsfuse --implicit-dirs --metadata-cache-ttl-secs 0 \
      --metadata-cache-negative-ttl-secs 0 $(printf %q "$BUCKET") /mnt/bucket
    [ -d infomask_jax ] || git clone -q $(printf %q "$REPOSITORY") infomask_jax
    cd infomask_jax
    git fetch -q origin
    git checkout -q $(printf %q "${REVISION:-origin/HEAD}") || { echo 'error: push this revision, or name another: REVISION'; exit 1; }
    python3.11 -m venv ~/venv && ~/venv/bin/pip install -q -e '.[pretrained]' 'jax[tpu]'"
  # A minute's rest, so that a machine that is being taken away is gone before training begins again.
  again="until ~/venv/bin/python $(printf '%q ' "$@"); do [ \$? -eq 75 ] || exit 1; sleep 60; done"
  on_all "cd infomask_jax || exit 1
    nohup flock -n ~/train.lock bash -c $(printf %q "$again") > ~/train.log 2>&1 < /dev/null &"
  ;;
log) on_all "tail -n 20 ~/train.log" ;;
stop) gcloud compute tpus queued-resources delete "$NAME" "${WHERE[@]}" --force ;;
*)
  sed -n '2,4s/^# //p' "$0" >&2
  exit 1
  ;;
esac
