#!/usr/bin/env bash
# Lists the contents of an image by size, in megabytes: scripts/image_contents.sh [IMAGE]
set -euo pipefail

image=${1:-trainer:gpu}
docker image inspect --format 'whole {{.Size}}' "$image" | awk '{printf "%8.0f MB  %s\n", $2 / 1e6, $1}'
# Folders of the packages, and the subfolders of nvidia, which contains several packages.
docker run --rm --entrypoint sh "$image" -c '
    cd /opt/trainer/lib/python3*/site-packages
    du -s --block-size=1000 -- * | grep -v "nvidia$"
    du -s --block-size=1000 nvidia/* 2>/dev/null
    du -s --block-size=1000 /opt/package /usr' |
    sort -rn | awk '$1 >= 5000 {printf "%8.0f MB  %s\n", $1 / 1000, $2}'
