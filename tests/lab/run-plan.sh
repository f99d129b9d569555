#!/bin/sh
# Runs in L1. Each line of PLAN, `NAME SECONDS COMMAND…`, is run by itself with at most that many of L1's seconds, and reported
# on ttyS1, which the host reads as it comes:
#
#     @begin NAME
#     |a line of output, both streams
#     @again NAME
#     @end NAME STATUS TENTHS-OF-A-SECOND
#
# A command that fails and has printed $AEROSTAT_LAB_EXCUSE, which says that the emulated CPU is to blame, is run again: that is
# what `@again` says, with the lines of the new attempt after it. All commands together have $AEROSTAT_LAB_EXCUSES such attempts.
#
# An ENQ among them every two seconds says that L1 is alive.
#
# A command that hangs or dies takes nothing with it but itself; processes and files that it leaves are removed.
[ -e /lab/.command ] || { echo "run-plan.sh: this is not L1" >&2; exit 2; }
now() { sed 's/\.\([0-9]\).*/\1/; s/^0*\(.\)/\1/' /proc/uptime; }
while sleep 2; do printf '\005'; done >/dev/ttyS1 &
echo $! >/run/beat
failed=0 excuses=0
[ -z "${AEROSTAT_LAB_EXCUSE:-}" ] || excuses=${AEROSTAT_LAB_EXCUSES:-0}
attempt() {
  start=$(now)
  timeout -s KILL "$limit" sh -c "exec $command" </dev/null >/tmp/.output 2>&1
  status=$?
  tenths=$(($(now) - start))
  killall -q -KILL aerostat qemu-system-x86_64
  # What a test prints without end must not hold up the others: the line is slow.
  { tail -c 65536 /tmp/.output | sed 's/^/|/'; echo; } >/dev/ttyS1
  excused=
  [ $status = 0 ] || [ "$excuses" = 0 ] || ! grep -qaF "$AEROSTAT_LAB_EXCUSE" /tmp/.output || excused=1
  rm -rf /tmp/* /tmp/.output
}
while read -r name limit command; do
  echo "@begin $name" >/dev/ttyS1
  attempt
  while [ -n "$excused" ]; do
    excuses=$((excuses - 1))
    echo "@again $name" >/dev/ttyS1
    attempt
  done
  [ $status = 0 ] || failed=1
  echo "@end $name $status $tenths" >/dev/ttyS1
done <"$1"
exit $failed
