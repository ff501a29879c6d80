#!/usr/bin/env bash
# Physical limits of the disk under a folder: limits.fio through fio_table.py.
#   limits.sh FOLDER [fio_table.py options]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=${1:?usage: limits.sh FOLDER [fio_table.py options]}
shift
mkdir -p "$folder"
# Written in full first, so that no job meets unwritten extents.
for i in 0 1 2; do
  file=$folder/limit.$i
  [ "$(stat -c %s "$file" 2>/dev/null || echo 0)" = $((2 << 30)) ] ||
    dd if=/dev/zero of="$file" bs=4M count=512 oflag=direct conv=fsync status=none
done
python3 "$here/fio_table.py" --label limits --jobs "$here/limits.fio" \
  --engine-args="--directory=$folder" "$@"
