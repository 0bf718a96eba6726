#!/usr/bin/env bash
# Builds the last stage of the Dockerfile around $IMAGE_ROOT (what its first stage
# makes from the same sources, where a base image can be pulled) and runs the image:
# as its own user, with nothing but its own files, from a result to Kafka and out.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${IMAGE_ROOT:?the directory of make image-root}" "${VERSION:?}"

work=$(mktemp -d /tmp/image-test.XXXXXX)
export CONTAINERS_STORAGE_CONF="$work/storage.conf" # a storage of our own, gone with the test
printf '[storage]\ndriver = "vfs"\nrunroot = "%s"\ngraphroot = "%s"\n' "$work/run" "$work/graph" >"$CONTAINERS_STORAGE_CONF"
pid= broker=
end() {
    if [ -n "$broker" ]; then kill "$broker" 2>/dev/null || true; fi
    if [ -n "$pid" ] && kill -0 "$pid" 2>/dev/null; then kill -KILL -- "-$pid" || true; fi
    rm -rf "$work"
}
trap end EXIT

fail() { echo "FAILED: $*" >&2; exit 1; }
is() { [ "$2" = "$3" ] || fail "$1: got '$2', want '$3'"; echo "ok: $1"; }

# Who builds: the tool that is asked for, or buildah before docker. Stand-ins tell who was called.
mkdir "$work/tools"
for tool in buildah docker; do printf '#!/bin/sh\necho %s "$1"\n' "$tool" >"$work/tools/$tool"; done
chmod +x "$work/tools/"*
chosen() { PATH="$work/tools:$PATH" make -s image "$@" 2>&1 || true; }
is "make image" "$(chosen)" "buildah build"
is "make image TOOL=docker" "$(chosen TOOL=docker)" "docker build"
case $(chosen TOOL=nothing-here) in "missing: nothing-here."*) echo "ok: a tool that is missing" ;; *) fail "a tool that is missing: $(chosen TOOL=nothing-here)" ;; esac

# What docs/OPERATIONS.md installs without Kubernetes is what make static makes, the image's own bytes.
static=$(make -s static VERSION="$VERSION")
is "make static tells where it is" "$static" "$(sed -n 's/^    install -m 0755 \([^ ]*\) .*/\1/p' docs/OPERATIONS.md)"
cmp "$static" "$IMAGE_ROOT/sidecar" || fail "make static makes something else than the image has"

# The last stage alone; --build-context stands in for the first.
mkdir "$work/context"
cp -a "$IMAGE_ROOT" "$work/context/image"
sed -n '/^FROM scratch/,$p' Dockerfile >"$work/Dockerfile"
buildah build --quiet --isolation chroot --build-arg VERSION="$VERSION" --build-context build="$work/context" -f "$work/Dockerfile" -t "sidecar:$VERSION" "$work/context" >"$work/id"
inspect() { buildah inspect --type image --format "$1" "sidecar:$VERSION"; }
is "user" "$(inspect '{{.OCIv1.Config.User}}')" 65532:65532
is "label of the version" "$(inspect '{{index .OCIv1.Config.Labels "org.opencontainers.image.version"}}')" "$VERSION"
is "entry point" "$(inspect '{{.OCIv1.Config.Entrypoint}} {{.OCIv1.Config.Cmd}}')" "[/sidecar] [run]"

box=$(buildah from "sidecar:$VERSION")
root=$(buildah mount "$box")
bytes=$(du -sb "$root" | cut -f1)
[ "$bytes" -le 25000000 ] || fail "the image holds $bytes bytes, more than 25 MB"
echo "ok: $bytes bytes"
is "files beside the licences" "$(cd "$root" && find . -path ./licenses -prune -o -type f -print | sort | xargs)" "./etc/ssl/certs/ca-certificates.crt ./sidecar"
[ "$(grep -c BEGIN "$root/etc/ssl/certs/ca-certificates.crt")" -gt 50 ] || fail "the CA certificates are missing"
[ -s "$root/licenses/LICENSE.go" ] && [ -s "$root/licenses/github.com/twmb/franz-go/pkg/kadm/LICENSE" ] || fail "licences are missing"

# Nothing of the host but these two mounts.
mkdir -p "$work/socket" "$work/data"
chown 65532:65532 "$work/socket" "$work/data"
chmod 0770 "$work/socket"
inside() { # CONTAINER COMMAND…; no two at a time in one
    buildah run --isolation chroot -v "$work/socket:/run/workflow-results" -v "$work/data:/var/lib/workflow-results" "$@"
}
is "by its name, as docs and page have it" "$(inside "$box" -- sidecar version --json | python3 -c 'import json, sys; print(json.load(sys.stdin)["version"])')" "$VERSION"
is "version" "$(inside "$box" -- /sidecar version --json | python3 -c 'import json, sys; print(json.load(sys.stdin)["version"])')" "$VERSION"

# The image has no broker for trials; one from the same sources, outside, is its Kafka.
port=$((20000 + RANDOM % 10000))
refused=$(inside "$box" -- /sidecar run --embedded-broker --brokers "127.0.0.1:$port" 2>&1) && fail "the image's sidecar has an embedded broker"
case $refused in *"has no broker in it"*) echo "ok: no embedded broker" ;; *) fail "--embedded-broker: $refused" ;; esac
bin/sidecar run --embedded-broker --brokers "127.0.0.1:$port" --socket "$work/broker.sock" --data-dir "$work/broker" 2>"$work/broker.log" &
broker=$!
setsid buildah run --isolation chroot -v "$work/socket:/run/workflow-results" -v "$work/data:/var/lib/workflow-results" "$box" -- \
    /sidecar run --brokers "127.0.0.1:$port" >"$work/log" 2>&1 &
pid=$!
for _ in {1..600}; do
    grep -q 'msg=ready' "$work/log" && break
    kill -0 "$pid" || { cat "$work/log" >&2; fail "the sidecar did not start"; }
    sleep 0.1
done
inside "$(buildah from "sidecar:$VERSION")" -- /sidecar healthcheck --ready
echo "ok: healthcheck"
answer=$(curl -sS --max-time 10 --unix-socket "$work/socket/sidecar.sock" "http://sidecar/v1/results?wait=published&timeout=10s" -H 'Content-Type: application/json' \
    -d '{"correlation_id":"0192f0c1-2b7e-7c3a-9d54-5f2a1b6c7d8e","workflow_id":"w","workflow_run_id":"r","status":"success","result":{"n":1},"error":null}')
is "a result goes through" "$(python3 -c 'import json, sys; print(json.load(sys.stdin)["state"])' <<<"$answer")" published
is "it runs as 65532" "$(stat -c %u:%g "$work/data/outbox.db")" 65532:65532
sidecar=$(pgrep -u 65532 -g "$pid" -x sidecar) || fail "no process of user 65532"
kill -TERM "$sidecar"
wait "$pid" || { cat "$work/log" >&2; fail "it did not end well"; }
pid=
grep -q 'everything is published' "$work/log" || { cat "$work/log" >&2; fail "it did not tell that all is published"; }
echo "ok: SIGTERM ends it, drained"

# The same sources, elsewhere, give the same bytes.
mkdir "$work/elsewhere"
cp -a cmd internal go.mod go.sum Makefile "$work/elsewhere/"
make --no-print-directory -s -C "$work/elsewhere" .cache/static/sidecar VERSION="$VERSION" >/dev/null
is "reproducible" "$(sha256sum <"$work/elsewhere/.cache/static/sidecar")" "$(sha256sum <"$root/sidecar")"
