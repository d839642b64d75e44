#!/usr/bin/env bash
# Measures `decree` beside etcd on one machine: three nodes each, the same closed loop, alternating
# runs, medians and ratios. Needs `etcd` on the PATH (Debian: etcd-server).
#
#   bench/compare-etcd.sh [put|get] [CLIENTS] [SECONDS] [RUNS]
set -euo pipefail
cd "$(dirname "$0")/.."
op=${1:-put} clients=${2:-64} seconds=${3:-5} runs=${4:-3}
value=256

command -v etcd >/dev/null || { echo "etcd is not installed: apt-get install etcd-server" >&2; exit 2; }
cargo build --quiet --release -p decree --bin decree --example etcd_load

dir=$(mktemp -d)
pids=()
cleanup() {
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
  wait 2>/dev/null || true
  rm -rf "$dir"
}
trap cleanup EXIT

members=m1=http://127.0.0.1:23801,m2=http://127.0.0.1:23802,m3=http://127.0.0.1:23803
for n in 1 2 3; do
  ETCD_UNSUPPORTED_ARCH= etcd --name "m$n" --data-dir "$dir/etcd$n" --log-level error \
    --listen-peer-urls "http://127.0.0.1:2380$n" --initial-advertise-peer-urls "http://127.0.0.1:2380$n" \
    --listen-client-urls "http://127.0.0.1:2370$n" --advertise-client-urls "http://127.0.0.1:2370$n" \
    --initial-cluster "$members" --initial-cluster-state new >"$dir/etcd$n.log" 2>&1 &
  pids+=($!)
done
./target/release/decree dev --no-shell --data-dir "$dir/decree" --base-port 9000 >"$dir/decree.log" 2>&1 &
pids+=($!)
export DECREE_ENDPOINTS=127.0.0.1:9101,127.0.0.1:9102,127.0.0.1:9103
for _ in $(seq 100); do
  ./target/release/decree put ready yes >/dev/null 2>&1 && break
  sleep 0.1
done
sleep 2

etcd_run() { ./target/release/examples/etcd_load "$op" "$clients" "$seconds" $value 127.0.0.1:23701,127.0.0.1:23702,127.0.0.1:23703; }
decree_run() { ./target/release/decree --json bench --op "$op" --clients "$clients" --value-size $value --seconds "${seconds}s" "$@"; }
# CPU seconds of all decree nodes so far.
node_cpu() { for pid in $(pgrep -f 'decree serve'); do awk '{print ($14+$15)/100}' "/proc/$pid/stat"; done | awk '{s+=$1} END {print s}'; }

for run in $(seq "$runs"); do
  echo "run $run"
  etcd_run
  before=$(node_cpu)
  echo "decree, streams: $(decree_run)"
  echo "  nodes' CPU seconds: $(echo "$(node_cpu) - $before" | bc)"
  echo "decree, unary:   $(decree_run --unary)"
done
