#!/usr/bin/env bash
# Drives a VM from its first request to its end with nothing but curl, the way Firecracker's getting-started does.
#
#   resources/getting-started.sh [--kernel PATH [--initrd PATH] [--rootfs PATH] [--boot-args STR]]
#                                [--memory MIB] [--vcpus N] [--aerostat PATH]
#
# Without --kernel the guest that is part of aerostat boots, on any host with /dev/kvm. A Linux kernel needs a
# hardware KVM. What the guest prints goes to a file that is shown at the end.
set -euo pipefail

aerostat=aerostat kernel=embedded initrd='' rootfs='' boot_args='' memory=256 vcpus=1
while [ $# -gt 0 ]; do
  case "$1" in
    --aerostat | --kernel | --initrd | --rootfs | --memory | --vcpus)
      [ $# -ge 2 ] || { echo "$1 needs a value" >&2; exit 2; }
      declare "${1#--}=$2" && shift 2 ;;
    --boot-args)
      [ $# -ge 2 ] || { echo "$1 needs a value" >&2; exit 2; }
      boot_args=$2 && shift 2 ;;
    *) sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
  esac
done
case "$kernel$initrd$rootfs$boot_args" in
  *[\"\\]*) echo 'Quotes and backslashes in paths or arguments are more than this script can put into JSON' >&2; exit 2 ;;
esac
if [ "$kernel" != embedded ] && [ -z "$boot_args" ]; then boot_args='console=ttyS0 panic=1'; fi

dir=$(mktemp -d)
socket=$dir/api.sock
vmm=''
finish() {
  if [ -n "$vmm" ]; then kill "$vmm" 2>/dev/null || true; fi
  rm -rf "$dir"
}
trap finish EXIT

step() { printf '\n== %s\n' "$*"; }

# api METHOD PATH [BODY]: shows the request as one would type it, sends it, shows the answer; ends if it is refused.
api() {
  local data=() answer refused=''
  if [ $# -ge 3 ]; then data=(--data "$3"); fi
  echo "curl --unix-socket $socket -X $1 http://localhost$2${3:+ --data '$3'}"
  answer=$(curl --silent --show-error --fail-with-body --unix-socket "$socket" --request "$1" "http://localhost$2" \
    --header 'Content-Type: application/json' ${data[@]+"${data[@]}"} --write-out '\n%{http_code}') || refused=1
  sed '/^$/d; s/^/  /' <<<"$answer"
  [ -z "$refused" ]
}

# wait_for SECONDS COMMAND…: until the command succeeds.
wait_for() {
  local left=$(($1 * 20))
  shift
  until "$@"; do
    left=$((left - 1))
    if [ "$left" -le 0 ]; then return 1; fi
    sleep 0.05
  done
}

balloon_is() {
  curl --silent --unix-socket "$socket" http://localhost/balloon/status | grep -q "\"actual_bytes\":$(($1 << 20)),"
}
has_ended() { ! kill -0 "$vmm" 2>/dev/null; }

step 'Start a process that is no VM yet'
echo "$aerostat --api-sock $socket --id getting-started"
"$aerostat" --api-sock "$socket" --id getting-started </dev/null >"$dir/console" 2>&1 &
vmm=$!
wait_for 10 test -S "$socket" || { cat "$dir/console" >&2; exit 1; }
api GET /
api GET /version

step 'Say where it logs and counts'
api PUT /logger "{\"log_path\":\"$dir/log\",\"level\":\"Info\",\"show_level\":true}"
api PUT /metrics "{\"metrics_path\":\"$dir/metrics\"}"

step 'Describe the machine'
api PUT /machine-config "{\"vcpu_count\":$vcpus,\"mem_size_mib\":$memory}"
source="\"kernel_image_path\":\"$kernel\""
if [ -n "$initrd" ]; then source="$source,\"initrd_path\":\"$initrd\""; fi
if [ -n "$boot_args" ]; then source="$source,\"boot_args\":\"$boot_args\""; fi
api PUT /boot-source "{$source}"
if [ -n "$rootfs" ]; then
  api PUT /drives/rootfs \
    "{\"drive_id\":\"rootfs\",\"path_on_host\":\"$rootfs\",\"is_root_device\":true,\"is_read_only\":false}"
fi
api PUT /balloon '{"amount_mib":0,"deflate_on_oom":false}'
api PUT /entropy '{}'
api GET /vm/config

step 'Start it'
api PUT /actions '{"action_type":"InstanceStart"}'
api GET /

step 'Take a quarter of its memory, and give it back'
quarter=$((memory / 4))
for amount in "$quarter" 0; do
  api PATCH /balloon "{\"amount_mib\":$amount}"
  if wait_for 60 balloon_is "$amount"; then
    echo "  the balloon has $amount MiB"
  elif [ "$kernel" = embedded ]; then
    echo "  the balloon does not follow" >&2
    exit 1
  else
    echo '  the balloon does not follow: has the kernel a driver for it?'
  fi
done
api GET /balloon

step 'Pause it and let it run again'
api PATCH /vm '{"state":"Paused"}'
api GET /
api PATCH /vm '{"state":"Resumed"}'

step 'Write its counters'
api PUT /actions '{"action_type":"FlushMetrics"}'
echo "  $(wc -l <"$dir/metrics") line of $(wc -c <"$dir/metrics") bytes"

step 'Ask the guest to power off'
api PUT /actions '{"action_type":"SendCtrlAltDel"}'
if ! wait_for 60 has_ended; then
  echo '  it does not: end it'
  api PUT /vm/stop '{"timeout_ms":0}' || true
fi
code=0
wait "$vmm" || code=$?
vmm=''
if [ -e "$socket" ]; then echo 'the socket was left behind' >&2; exit 1; fi
step "It has ended with exit code $code. The guest's console:"
cat "$dir/console"
step 'The log:'
cat "$dir/log"
exit "$code"
