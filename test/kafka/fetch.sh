#!/usr/bin/env bash
# Downloads Apache Kafka's jars from Maven Central for the tests with a real broker.
#
#   test/kafka/fetch.sh [DIR]      DIR is .cache/kafka/libs in the repository if left out
#
# Does nothing when DIR already holds what pom.xml names: a stamp file keeps the
# hash of the pom, and is written last, so that a broken download starts again.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
dir=${1:-$here/../../.cache/kafka/libs}
stamp=$dir/.pom.sha256

install="apt-get install openjdk-17-jre-headless maven"

# java_major prints 17 for `version "17.0.15"`, or nothing when there is no Java.
java_major() {
    java -version 2>&1 | sed -n 's/.*version "\([0-9]*\).*/\1/p' | head -n 1
}

missing=()
major=$(command -v java >/dev/null && java_major || true)
if [ -z "$major" ]; then
    missing+=("java (17 or later)")
elif [ "$major" -lt 17 ]; then
    missing+=("java 17 or later (this one is $major)")
fi

want=$(sha256sum <"$here/pom.xml")
fetched=false
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$want" ]; then
    fetched=true
elif ! command -v mvn >/dev/null; then
    missing+=("mvn (Maven 3.6 or later)")
fi

if [ ${#missing[@]} -gt 0 ]; then
    echo "The tests with a real Kafka need what this machine lacks:" >&2
    printf '  - %s\n' "${missing[@]}" >&2
    echo "Install it (Debian, Ubuntu): $install" >&2
    exit 1
fi
if $fetched; then
    exit 0
fi

mkdir -p "$dir"
rm -f "$stamp" "$dir"/*.jar # jars of another version must not stay on the class path
dir=$(cd "$dir" && pwd)
echo "Fetching Apache Kafka into $dir (about 60 MB, once)" >&2
mvn -q -B -f "$here/pom.xml" dependency:copy-dependencies -DoutputDirectory="$dir" -DincludeScope=runtime
echo "$want" >"$stamp"
