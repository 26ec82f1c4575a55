#!/usr/bin/env bash
# Label's hash of a directory by find, sort and sha256sum: independent of the program, and slow.
# In UTF-8 the order of bytes is that of code points.
set -u
export LC_ALL=C

walk() { # directory, path below the root
  local name
  while IFS= read -r -d '' name; do
    printf '%s' "$2$name"
    [ -f "$1/$name" ] && cat -- "$1/$name" 2>/dev/null
  done < <(find "$1" -mindepth 1 -maxdepth 1 ! -xtype d -printf '%f\0' | sort -z)
  while IFS= read -r -d '' name; do
    walk "$1/$name" "$2$name/"
  done < <(find "$1" -mindepth 1 -maxdepth 1 -type d -printf '%f\0' | sort -z)
}

for root; do
  walk "$root" '' | sha256sum | cut -d ' ' -f 1
done
