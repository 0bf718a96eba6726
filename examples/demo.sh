#!/usr/bin/env bash
# The whole way of three results: LangGraph → socket → outbox → Kafka → await.
# Called by `make demo`, which has built the sidecar and the virtual environment.
set -euo pipefail
sidecar=${SIDECAR:?} python=${PYTHON:?}
dir=$(mktemp -d)
socket=$dir/results.sock
port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
broker=127.0.0.1:$port
pid=
finish() {
    if [ -n "$pid" ]; then
        kill "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
    fi
    rm -rf "$dir"
}
trap finish EXIT
if [ -t 1 ]; then say() { printf '\n\033[1m%s\033[0m\n' "$*"; }; else say() { printf '\n%s\n' "$*"; }; fi

say "1. Start the sidecar, with an embedded broker in place of Kafka"
"$sidecar" run --embedded-broker --brokers "$broker" --socket "$socket" --data-dir "$dir/data" --linger 0s 2>"$dir/log" &
pid=$!
for _ in $(seq 100); do
    if "$sidecar" healthcheck --ready --socket "$socket" 2>/dev/null; then break; fi
    if ! kill -0 "$pid" 2>/dev/null; then cat "$dir/log" >&2; exit 1; fi
    sleep 0.1
done
echo "   socket $socket, broker $broker"

say "2. Run a LangGraph graph three times; each run hands its result to the sidecar"
ids=$("$python" examples/python/demo/run_demo.py --socket "$socket")

say "3. Wait for each by its correlation ID, as an Airflow task would"
failed=0
for kind in success failure error; do
    id=$("$python" -c 'import json, sys; print(json.loads(sys.argv[1])[sys.argv[2]])' "$ids" "$kind")
    echo "   sidecar await --correlation-id $id"
    status=0
    value=$("$sidecar" await --brokers "$broker" --correlation-id "$id" --timeout 30s) || status=$?
    want=1; [ "$kind" = success ] && want=0
    if [ "$status" -ne "$want" ] || ! grep -q "\"status\":\"$kind\"" <<<"$value"; then
        echo "   NOT the $kind that was handed over (exit status $status): $value" >&2
        failed=1
        continue
    fi
    "$python" -c 'import json, sys; print(json.dumps(json.loads(sys.argv[1]), indent=2))' "$value" | sed 's/^/     /'
    echo "     (exit status $status)"
done

say "4. Where each result is, as the outbox tells"
"$sidecar" outbox list --socket "$socket" | sed 's/^/   /'
echo
"$sidecar" status --socket "$socket" | sed 's/^/   /'
[ "$failed" -eq 0 ] || { echo "The demo failed." >&2; exit 1; }

say "All three arrived. Where to go next"
cat <<'NEXT'
   README.md                  what is promised, and how to run it
   examples/python/README.md  the one call for a LangGraph developer
   docs/OPERATIONS.md         what to type at 3 a.m.
   sidecar --help             every command has an example
NEXT
