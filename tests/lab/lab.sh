#!/usr/bin/env bash
# Runs a command on a conforming hardware KVM (kvm-amd with nested paging) where the host has none: QEMU's TCG emulates an
# SVM-capable CPU, Debian's stock cloud kernel runs on it as L1 and loads its own KVM, and the command runs in L1 with /dev/kvm.
# Function, not performance: TCG is slow and its clock is elastic. q35 rather than microvm: without an HPET the kernel's TSC
# calibration fails in about one boot in fifteen and L1 hangs.
#
#   lab.sh [-m MiB] [-t SECONDS] [-a 'kernel args'] [-e NAME=VALUE]... [-f FILE[:PATH-IN-L1]]... -- COMMAND [ARG...]
#
# FILE is copied with the shared libraries it needs (default place: /lab/NAME), ELF files without their debug sections. Output
# is L1's console. Exit status: the command's; 124 when L1 did not finish in time; 69 when the lab's packages are missing.
set -euo pipefail
packages='qemu-system-x86 linux-image-cloud-amd64 busybox-static cpio zstd xz-utils binutils'
usage() { echo "lab.sh: $1" >&2; sed -n 's/^#   lab.sh/usage: lab.sh/p' "$0" >&2; exit 2; }
missing() { echo "lab.sh: $1 (apt-get install --no-install-recommends $packages)" >&2; exit 69; }

mem=2048 limit=120 extra= files=() vars=()
while getopts m:t:a:e:f: o; do
  case $o in m) mem=$OPTARG ;; t) limit=$OPTARG ;; a) extra=$OPTARG ;; e) vars+=("$OPTARG") ;; f) files+=("$OPTARG") ;;
    *) usage "unknown option" ;; esac
done
shift $((OPTIND - 1))
[ "${1:-}" != -- ] || shift
[ $# -gt 0 ] || usage "no command"

kernel=$(find /boot -maxdepth 1 -name 'vmlinuz-*cloud-amd64' 2>/dev/null | sort -V | tail -n 1)
[ -n "$kernel" ] || missing "no Debian cloud kernel in /boot"
for tool in qemu-system-x86_64 cpio xz zstd strip; do command -v "$tool" >/dev/null || missing "no $tool"; done
[ -x /bin/busybox ] || missing "no /bin/busybox"
version=${kernel#/boot/vmlinuz-} modules=/lib/modules/${kernel#/boot/vmlinuz-}/kernel

work=$(mktemp -d "${TMPDIR:-/tmp}/aerostat-lab.XXXXXX")
trap 'rm -rf "$work"' EXIT
root=$work/root
mkdir -p "$root"/{bin,dev,proc,sys,tmp,lab,m,run,etc,root}
echo 'root:x:0:0::/root:/bin/sh' >"$root/etc/passwd"
cp /bin/busybox "$root/bin/"
for t in $(/bin/busybox --list | grep -vx busybox); do ln -sf busybox "$root/bin/$t"; done
for m in virt/lib/irqbypass arch/x86/kvm/kvm arch/x86/kvm/kvm-amd; do
  name=${m##*/}
  if [ -f "$modules/$m.ko.xz" ]; then xz -dc "$modules/$m.ko.xz" >"$root/m/$name.ko"
  elif [ -f "$modules/$m.ko.zst" ]; then zstd -qdc "$modules/$m.ko.zst" >"$root/m/$name.ko"
  elif [ -f "$modules/$m.ko" ]; then cp "$modules/$m.ko" "$root/m/$name.ko"
  else echo "lab.sh: kernel $version has no module $m" >&2; exit 69; fi
done
libraries() { { ldd "$1" 2>/dev/null || true; } | awk '{ for (i = 1; i <= NF; i++) if ($i ~ /^\//) print $i }'; }
for spec in "${files[@]}"; do
  src=${spec%%:*} dst=/lab/${spec##*/}
  [ "$spec" = "$src" ] || dst=${spec#*:}
  [ -e "$src" ] || { echo "lab.sh: $src does not exist" >&2; exit 2; }
  mkdir -p "$root${dst%/*}"
  cp -rL "$src" "$root$dst"
  for l in $(libraries "$src"); do mkdir -p "$root${l%/*}"; cp -nL "$l" "$root$l"; done
  [ -d "$src" ] || strip --strip-debug "$root$dst" 2>/dev/null || true
done
for v in "${vars[@]}"; do printf 'export %q\n' "$v" >>"$root/lab/.environment"; done
touch "$root/lab/.environment"
printf '%q ' "$@" >"$root/lab/.command"
cat >"$root/init" <<'I'
#!/bin/sh
export PATH=/bin:/lab HOME=/tmp TMPDIR=/tmp XDG_RUNTIME_DIR=/run
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev; mount -t tmpfs tmp /tmp; mount -t tmpfs run /run
mkdir -p /dev/pts /dev/shm; mount -t devpts pts /dev/pts; mount -t tmpfs shm /dev/shm
mkdir -p /sys/fs/cgroup; mount -t cgroup2 none /sys/fs/cgroup 2>/dev/null
chmod 700 /run
insmod /m/irqbypass.ko; insmod /m/kvm.ko; insmod /m/kvm-amd.ko npt=1
ip link set lo up 2>/dev/null
[ -c /dev/kvm ] || echo "lab: no /dev/kvm in L1"
cd /lab; . ./.environment; sh ./.command; rc=$?
echo 1 >/proc/sys/kernel/printk; printf '\nLAB-EXIT %s\n' "$rc"
poweroff -f
I
chmod +x "$root/init"
(cd "$root" && find . | cpio -o -H newc --quiet) >"$work/l1.cpio"

timeout "$limit" qemu-system-x86_64 -accel tcg,thread=multi -cpu max,+svm,+npt -m "$mem" -smp 1 \
  -M q35,hpet=on,smbus=off,sata=off,usb=off,vmport=off -nodefaults -no-user-config -no-reboot -display none -serial stdio \
  -kernel "$kernel" -initrd "$work/l1.cpio" \
  -append "console=ttyS0 panic=-1 reboot=t nokaslr quiet mitigations=off init_on_alloc=0 $extra" \
  </dev/null 2>"$work/err" | tr -d '\r' | tee "$work/out" || true
status=$(sed -n 's/^LAB-EXIT \([0-9]*\)$/\1/p' "$work/out" | tail -n 1)
if [ -z "$status" ]; then
  cat "$work/err" >&2
  echo "lab.sh: L1 ended, or ran out of its $limit s, without an exit status" >&2
  exit 124
fi
exit "$status"
