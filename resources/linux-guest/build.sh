#!/usr/bin/env bash
# Builds the initramfs of the Linux test guest: Debian's busybox, the virtio and ACPI modules of a stock kernel, and an init that
# runs the shell commands that a test sends over the console. The kernel stays as Debian ships it.
#
#   build.sh [-f FILE[:PATH-IN-GUEST]]... KERNEL-VERSION OUT
#
# KERNEL-VERSION names a directory in /lib/modules. FILE is added with the shared libraries it needs (default place: /bin).
# The archive is not compressed: an emulated CPU reads it faster than it inflates it.
set -euo pipefail
usage() { echo "build.sh: $1" >&2; sed -n 's/^#   build.sh/usage: build.sh/p' "$0" >&2; exit 2; }

files=()
while getopts f: o; do
  case $o in f) files+=("$OPTARG") ;; *) usage "unknown option" ;; esac
done
shift $((OPTIND - 1))
[ $# = 2 ] || usage "KERNEL-VERSION and OUT are needed"
version=$1 out=$2 tree=/lib/modules/$1
[ -f "$tree/modules.dep" ] || usage "$tree has no modules.dep"

here=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=../../tests/lab/archive.sh
. "$here/../../tests/lab/archive.sh"

work=$(mktemp -d "${TMPDIR:-/tmp}/aerostat-linux-guest.XXXXXX")
trap 'rm -rf "$work"' EXIT
root=$work/root
mkdir -p "$root"/{bin,dev,proc,sys,tmp,mnt,modules,etc/acpi/PWRF,root}
# Debian's busybox finds its applets by itself: no links are needed but the shell's.
cp /bin/busybox "$root/bin/"
ln -s busybox "$root/bin/sh"
cp "$here/init" "$root/init"
printf '#!/bin/sh\nexec poweroff -f\n' >"$root/etc/acpi/PWRF/00000080"
chmod +x "$root/init" "$root/etc/acpi/PWRF/00000080"
echo 'root:x:0:0::/root:/bin/sh' >"$root/etc/passwd"

# In the order in which init loads them; a driver that the kernel has built in is left out.
drivers='button evdev virtio_mmio virtio_console virtio_blk virtio_balloon virtio_mem virtio-rng pvpanic-mmio'
for driver in $drivers; do
  for module in $(module_closure "$version" "$driver"); do
    name=$(module_name "$module")
    [ -f "$root/modules/$name.ko" ] && continue
    unpack_module "$tree/$module" "$root/modules/$name.ko"
    echo "$name" >>"$root/modules/order"
  done
done
for spec in "${files[@]}"; do add_file "$root" "$spec" /bin; done
pack_archive "$root" "$out"
