#!/usr/bin/env bash
# Lays out what a Linux guest boots from: for every stock Debian cloud kernel on this host DIRECTORY/SERIES/{vmlinuz,initrd}.
#
#   linux-images.sh [-f FILE[:PATH-IN-GUEST]]... DIRECTORY [SERIES...]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
files=()
while getopts f: o; do case $o in f) files+=(-f "$OPTARG") ;; *) exit 2 ;; esac; done
shift $((OPTIND - 1))
out=$1
shift
for kernel in $(find /boot -maxdepth 1 -name 'vmlinuz-*cloud-amd64' 2>/dev/null | sort -V); do
  version=${kernel#/boot/vmlinuz-}
  series=$(grep -o '^[0-9]*\.[0-9]*' <<<"$version")
  if [ $# -gt 0 ] && [[ " $* " != *" $series "* ]]; then continue; fi
  mkdir -p "$out/$series"
  ln -sf "$kernel" "$out/$series/vmlinuz"
  "$here/../../resources/linux-guest/build.sh" "${files[@]}" "$version" "$out/$series/initrd"
done
