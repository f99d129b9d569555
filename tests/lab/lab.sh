#!/usr/bin/env bash
# Runs a command on a conforming hardware KVM (kvm-amd with nested paging) where the host has none: QEMU's TCG emulates an
# SVM-capable CPU, Debian's stock cloud kernel runs on it as L1 and loads its own KVM, and the command runs in L1 with /dev/kvm.
# Function, not performance: TCG is slow and its clock is elastic. docs/lab.md says more.
#
#   lab.sh [-k SERIES] [-m MiB] [-s CPUS] [-t SECONDS] [-a 'kernel args'] [-e NAME=VALUE]... [-f FILE[:PATH-IN-L1]]... [-l]
#          [-r FILE] [-q 'QEMU args'] [-n] -- COMMAND [ARG...]
#
# -k  L1's kernel, such as 6.1 or 6.12 (default: the newest in /boot)     -t  real seconds for everything (default 120)
# -f  FILE is copied with the shared libraries it needs (default place: /lab/NAME), ELF files without their debug sections
# -l  puts every stock kernel and the Linux test guest's initramfs into /lab/linux, for tests whose guest is Linux
# -r  what L1 writes to /dev/ttyS1 goes to FILE as it comes
# -q  more arguments for QEMU, such as '-s -S' for gdb or '-monitor unix:/tmp/lab,server=on,wait=off'
# -n  only says whether the packages are there
#
# Output is L1's console. Exit status: the command's; 124 when L1 did not finish in time; 69 when the lab's packages are missing.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
packages=$(<"$here/packages")
usage() { echo "lab.sh: $1" >&2; sed -n 's/^#   lab.sh/usage: lab.sh/p' "$0" >&2; exit 2; }
missing() { echo "lab.sh: $1 (apt-get install --no-install-recommends $packages)" >&2; exit 69; }

series= mem=2048 cpus=1 limit=120 extra= linux= check= results=null more= files=() vars=()
while getopts k:m:s:t:a:e:f:lr:q:n o; do
  case $o in k) series=$OPTARG ;; m) mem=$OPTARG ;; s) cpus=$OPTARG ;; t) limit=$OPTARG ;; a) extra=$OPTARG ;;
    e) vars+=("$OPTARG") ;; f) files+=("$OPTARG") ;; l) linux=1 ;; q) more=$OPTARG ;; n) check=1 ;; r) results=file:$OPTARG ;; *) usage "unknown option" ;; esac
done
shift $((OPTIND - 1))
[ "${1:-}" != -- ] || shift
[ $# -gt 0 ] || usage "no command"

kernel=$(find /boot -maxdepth 1 -name "vmlinuz-${series:+$series.}*cloud-amd64" 2>/dev/null | sort -V | tail -n 1)
[ -n "$kernel" ] || missing "no Debian cloud kernel ${series:+of series $series }in /boot"
for tool in qemu-system-x86_64 cpio xz zstd strip /sbin/debugfs; do command -v "$tool" >/dev/null || missing "no $tool"; done
[ -x /bin/busybox ] || missing "no /bin/busybox"
[ -z "$check" ] || exit 0
version=${kernel#/boot/vmlinuz-}

. "$here/archive.sh"

work=$(mktemp -d "${TMPDIR:-/tmp}/aerostat-lab.XXXXXX")
qemu= keys=
trap 'kill $qemu $keys 2>/dev/null || true; rm -rf "$work"' EXIT
trap 'exit 143' TERM INT HUP
root=$work/root
mkdir -p "$root"/{bin,dev,proc,sys,tmp,lab,m,run,etc,root}
echo 'root:x:0:0::/root:/bin/sh' >"$root/etc/passwd"
cp /bin/busybox "$root/bin/"
for t in $(/bin/busybox --list | grep -vx busybox); do ln -sf busybox "$root/bin/$t"; done
for module in $(module_closure "$version" kvm-amd); do
  name=$(module_name "$module")
  unpack_module "/lib/modules/$version/$module" "$root/m/$name.ko"
  echo "$name" >>"$root/m/order"
done
for spec in "${files[@]}"; do add_file "$root" "$spec" /lab; done
if [ -n "$linux" ]; then
  "$here/linux-images.sh" "$work/linux"
  cp -rL "$work/linux" "$root/lab/linux"
  vars+=(AEROSTAT_LINUX_DIR=/lab/linux)
  # What the tests look into the guest's file systems with.
  for tool in mkfs.ext4 e2fsck debugfs; do add_file "$root" "/sbin/$tool:/bin/$tool" /bin; done
fi
for v in "${vars[@]}"; do printf 'export %q\n' "$v" >>"$root/lab/.environment"; done
touch "$root/lab/.environment"
printf '%q ' "$@" >"$root/lab/.command"
cp "$here/init" "$root/init"
chmod +x "$root/init"
pack_archive "$root" "$work/l1.cpio"

# What keeps L1 steady on a busy host: an HPET, without which the TSC calibration fails in about one boot in fifteen and L1
# hangs (hence q35 rather than microvm); the TSC's frequency from outside; no check that timer ticks arrive in time.
tsc=
if cc -O1 -o "$work/tsc-khz" "$here/tsc-khz.c" 2>/dev/null; then tsc=tsc_early_khz=$("$work/tsc-khz"); fi
# XSAVE is withheld since TCG does not intercept XSETBV: KVM would never learn of a guest's XCR0. The model is one without the
# errata of TCG's own, for which Linux has a costly idle routine.
mkfifo "$work/console" "$work/monitor.in" "$work/monitor.out"
sed -u 's/\r//g' <"$work/console" | tee "$work/out" &
# TCG loses an interrupt once in many million exits from L2: VMRUN and #VMEXIT change the CPU's pending requests without the lock
# under which devices add theirs. A CPU that idles then sleeps for good on a timer that has expired, unless another interrupt makes
# the APIC look again: here that of a key every few seconds.
cat "$work/monitor.out" >/dev/null &
while sleep 5; do echo 'sendkey ctrl'; done >"$work/monitor.in" 2>/dev/null &
keys=$!
# shellcheck disable=SC2086 # $more is several arguments
timeout "$limit" qemu-system-x86_64 -accel tcg,thread=multi -cpu max,+svm,+npt,-xsave,family=25,model=1,stepping=1 \
  -m "$mem" -smp "$cpus" -M q35,hpet=on,smbus=off,sata=off,usb=off,vmport=off -nodefaults -no-user-config -no-reboot \
  -chardev pipe,id=keys,path="$work/monitor" -mon keys -display none -serial stdio -serial "$results" -kernel "$kernel" -initrd "$work/l1.cpio" \
  -append "console=ttyS0 panic=-1 reboot=t nokaslr quiet mitigations=off init_on_alloc=0 no_timer_check $tsc $extra" \
  $more </dev/null >"$work/console" 2>"$work/err" &
qemu=$!
# In the background, so that a signal to this script ends QEMU at once.
wait "$qemu" || true
qemu=
kill "$keys" 2>/dev/null || true
wait
status=$(sed -n 's/^LAB-EXIT \([0-9]*\)$/\1/p' "$work/out" | tail -n 1)
if [ -z "$status" ]; then
  cat "$work/err" >&2
  echo "lab.sh: L1 ended, or ran out of its $limit s, without an exit status" >&2
  exit 124
fi
exit "$status"
