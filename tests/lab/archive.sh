# Building initramfs archives: sourced by lab.sh and by resources/linux-guest/build.sh. shellcheck shell=bash

# module_path VERSION NAME: the file of module NAME below /lib/modules/VERSION; nothing if the kernel has it built in.
module_path() {
  local file="$2" tree=/lib/modules/$1 found
  found=$(sed -n "s|^\([^:]*/${file}\.ko[.a-z]*\):.*|\1|p" "$tree/modules.dep" | head -n 1)
  if [ -n "$found" ]; then echo "$found"
  elif ! grep -q "/${file}\.ko\$" "$tree/modules.builtin"; then
    echo "kernel $1 has no module $2" >&2
    return 69
  fi
}

# module_closure VERSION NAME: the module's file and those it needs, in loading order.
module_closure() {
  local path
  path=$(module_path "$1" "$2") || return
  [ -n "$path" ] || return 0
  # modules.dep lists dependencies nearest first.
  sed -n "s|^$path: *||p" "/lib/modules/$1/modules.dep" | tr ' ' '\n' | tac | sed '/^$/d'
  echo "$path"
}

# module_name FILE: "kernel/a/b/kvm-amd.ko.xz" is kvm-amd.
module_name() { local name=${1##*/}; echo "${name%%.ko*}"; }

# unpack_module FILE OUT
unpack_module() {
  case $1 in
    *.xz) xz -dc "$1" >"$2" ;;
    *.zst) zstd -qdc "$1" >"$2" ;;
    *.gz) gzip -dc "$1" >"$2" ;;
    *) cp "$1" "$2" ;;
  esac
}

# libraries FILE: the shared libraries, loader included, that an ELF file needs.
libraries() { { ldd "$1" 2>/dev/null || true; } | awk '{ for (i = 1; i <= NF; i++) if ($i ~ /^\//) print $i }'; }

# add_file ROOT FILE[:PLACE] DIRECTORY: copies a file with its libraries, without debug sections, or a directory; by default
# into DIRECTORY of the archive.
add_file() {
  local root=$1 src=${2%%:*} dst library
  dst=$3/${src##*/}
  [ "$2" = "$src" ] || dst=${2#*:}
  [ -e "$src" ] || { echo "$src does not exist" >&2; return 2; }
  mkdir -p "$root${dst%/*}"
  if [ -d "$src" ]; then cp -rL "$src" "$root$dst"; return; fi
  # Kernels and data are no ELF files that strip knows.
  strip --strip-debug -o "$root$dst" "$src" 2>/dev/null || cp -L "$src" "$root$dst"
  for library in $(libraries "$src"); do
    mkdir -p "$root${library%/*}"
    [ -e "$root$library" ] || cp -L "$library" "$root$library"
  done
}

# pack_archive ROOT OUT
pack_archive() { (cd "$1" && find . -mindepth 1 | cpio -o -H newc --quiet -R 0:0) >"$2"; }
