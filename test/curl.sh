#!/usr/bin/env bash
# Every call of the socket with curl, as a person would try it.
set -euo pipefail
sidecar=${SIDECAR:?}
dir=$(mktemp -d)
pid=
finish() {
    if [ -n "$pid" ]; then
        kill "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
    fi
    rm -rf "$dir"
}
trap finish EXIT
S=$dir/s
read -r broker admin < <(python3 - <<'P'
import socket
a, b = socket.socket(), socket.socket()
for s in (a, b):
    s.bind(("127.0.0.1", 0))
print(*(f"127.0.0.1:{s.getsockname()[1]}" for s in (a, b)))
P
)
"$sidecar" run --embedded-broker --brokers "$broker" --socket "$S" --data-dir "$dir/data" --admin-addr "$admin" --linger 0s --show-payload 2>"$dir/log" &
pid=$!
for _ in $(seq 100); do
    if "$sidecar" healthcheck --ready --socket "$S" 2>/dev/null; then break; fi
    sleep 0.1
done

passed=0 failed=0
# expect STATUS PATTERN curl-arguments…
expect() {
    local want=$1 pattern=$2 status body
    shift 2
    status=$(curl -sS --max-time 20 --unix-socket "$S" -o "$dir/body" -w '%{http_code}' "$@") || status=failed
    body=$(cat "$dir/body")
    if [ "$status" = "$want" ] && grep -qE "$pattern" <<<"$body"; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        echo "FAILED: curl $* answered $status, not $want with $pattern: $body" >&2
    fi
}
uuid() { python3 -c 'import uuid; print(uuid.uuid4())'; }
json=(-H 'Content-Type: application/json')
nd=(-H 'Content-Type: application/x-ndjson')
url=http://sidecar
id=$(uuid) correlation=$(uuid)
event() { printf '{"event_id":"%s","correlation_id":"%s","workflow_id":"w","workflow_run_id":"r","status":"success","result":%s}' "$1" "$correlation" "$2"; }

expect 201 '"duplicate":false' "${json[@]}" -d "$(event "$id" '{"a":1}')" $url/v1/results
expect 200 '"duplicate":true' "${json[@]}" -d "$(event "$id" '{"a":1}')" $url/v1/results
expect 409 '"held":\{' "${json[@]}" -d "$(event "$id" '{"a":2}')" $url/v1/results
expect 201 '"offset":' "${json[@]}" -d "$(event "$(uuid)" '{"a":3}')" "$url/v1/results?wait=published&timeout=10s"
expect 400 'not-json' "${json[@]}" -d '{"a":' $url/v1/results
expect 400 'bad-query' "${json[@]}" -d '{}' "$url/v1/results?wait=never"
expect 415 'media-type' -H 'Content-Type: text/plain' -d '{}' $url/v1/results
expect 422 'correlation_id.*workflow_id.*workflow_run_id.*status' "${json[@]}" -d '{}' $url/v1/results
head -c 2000000 /dev/zero | tr '\0' x >"$dir/large"
expect 413 '"limit_bytes":[0-9]+.*"size_bytes":2000000' "${json[@]}" --data-binary "@$dir/large" $url/v1/results
expect 413 'too-large' "${json[@]}" -H 'Transfer-Encoding: chunked' --data-binary "@$dir/large" $url/v1/results
printf '%s\n%s\n\nnot json\n' "$(event "$(uuid)" '{"b":1}')" "$(event "$id" '{"a":1}')" >"$dir/batch"
expect 200 '"line":1,"status":201' "${nd[@]}" --data-binary "@$dir/batch" $url/v1/results:batch
expect 200 '"line":4,"status":400' "${nd[@]}" --data-binary "@$dir/batch" "$url/v1/results:batch?wait=published"
expect 200 '"state":"(pending|published)"' "$url/v1/results/$id"
expect 200 '"result":\{"a":1\}' "$url/v1/results/$id?payload=true"
expect 404 'not-found' "$url/v1/results/$(uuid)"
expect 404 'unknown-path' $url/v1/results/nonsense
expect 404 'unknown-path' $url/nowhere
expect 200 '"next_after":null' "$url/v1/results?correlation_id=$correlation"
expect 200 '"next_after":[0-9]+' "$url/v1/results?limit=1"
expect 400 'bad-query' "$url/v1/results?state=lost"
expect 409 'not-parked' -X POST "$url/v1/results/$id:retry"
expect 409 'not-parked' -X DELETE "$url/v1/results/$id"
expect 404 'not-found' -X DELETE "$url/v1/results/$(uuid)"
expect 405 'method' -X PUT $url/v1/results
expect 200 '' -I $url/v1/results
expect 200 '' -I $url/healthz
expect 200 '"outbox":' $url/v1/status
expect 200 '"ok":true' $url/healthz
expect 200 '"ok":true' $url/readyz
expect 200 'workflow_results_accepted_total [1-9]' $url/metrics
# The admin address has the probes, and takes no results.
expect_tcp() { # the same without the socket
    local status
    status=$(curl -sS --max-time 20 -o "$dir/body" -w '%{http_code}' "${@:2}") || status=failed
    if [ "$status" = "$1" ]; then passed=$((passed + 1)); else failed=$((failed + 1)); echo "FAILED: curl ${*:2} answered $status, not $1: $(cat "$dir/body")" >&2; fi
}
for path in / /healthz /readyz /v1/status /v1/history /metrics; do expect_tcp 200 "http://$admin$path"; done
expect_tcp 404 "${json[@]}" -d "$(event "$(uuid)" '{}')" "http://$admin/v1/results"
expect_tcp 404 "http://$admin/v1/results"
expect_tcp 403 -H 'Host: evil.example' "http://$admin/v1/status"
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
