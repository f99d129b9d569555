#!/bin/sh
# Misses per page of E2's batches, in caches that Cachegrind simulates: the guest has no counters for real ones.
# First level 32 KiB, last level 1 MiB as a CPU's own second one; both are flooded before add, walk and retry.
# Usage: guest-mm/benches/batch.sh [PAGES...]   (needs valgrind)
set -eu
cd "$(dirname "$0")/../.."
bench=$(cargo bench -q -p guest-mm --features testing --bench batch --no-run --message-format=json |
    sed -n 's/.*"executable":"\([^"]*batch-[^"]*\)".*/\1/p')
batches=100

# Instructions, reads and writes that missed the first level, and the last.
count() {
    valgrind --tool=cachegrind --cache-sim=yes --cachegrind-out-file=/dev/null \
        --I1=32768,8,64 --D1=32768,8,64 --LL=1048576,16,64 "$bench" "$@" 2>&1 |
        sed -n 's/,//g; s/^==[0-9]*== \(I\|D1\|LLd\) *\(refs\|misses\): *\([0-9]*\).*/\3/p' | tr '\n' ' '
}

echo '| batch | arm | instructions | first-level misses | last-level misses |'
echo '|---:|---|---:|---:|---:|'
for pages in ${*:-32 128 512}; do
    none=$(count none "$pages")
    for arm in array list; do
        # shellcheck disable=SC2046 # three numbers each
        set -- $none $(count "$arm" "$pages")
        awk -v n=$((batches * pages)) -v arm=$arm -v pages="$pages" -v i=$(($4 - $1)) -v d=$(($5 - $2)) -v l=$(($6 - $3)) \
            'BEGIN { printf "| %d | %s | %.1f | %.2f | %.2f |\n", pages, arm, i / n, d / n, l / n }'
    done
done
