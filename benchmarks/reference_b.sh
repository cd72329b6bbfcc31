#!/bin/bash
# Reference B, what a careful admin types: rclone, GNU tar, igzip -1, openssl, cp; and the same again for verification,
# member by member. No staging, no fsync, no read past the cache. rclone's remote "s3:" comes from the environment.
#
#     benchmarks/reference_b.sh BUCKET/PREFIX SCRATCH LTS
set -euo pipefail
from=$1 scratch=$2 lts=$3

sums() { (cd "$1" && find . -type f -print0 | sort -z | xargs -0 openssl dgst -sha256 -r); }

mkdir "$scratch/source" "$scratch/back"
rclone copy --transfers 8 "s3:$from" "$scratch/source"
sums "$scratch/source" > "$scratch/files.sha256"
tar -C "$scratch/source" -cf - . | igzip -1 -c > "$scratch/datablock.tar.gz"
openssl dgst -sha256 -r < "$scratch/datablock.tar.gz" > "$scratch/datablock.sha256"

cp "$scratch/datablock.tar.gz" "$lts/datablock.tar.gz"

cp "$lts/datablock.tar.gz" "$scratch/back.tar.gz"
openssl dgst -sha256 -r < "$scratch/back.tar.gz" | cmp - "$scratch/datablock.sha256"
igzip -d -c "$scratch/back.tar.gz" | tar -C "$scratch/back" -xf -
sums "$scratch/back" | cmp - "$scratch/files.sha256"
