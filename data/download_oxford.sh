#!/usr/bin/env bash
# Fetches the Oxford hand data set into data/hand_dataset. Run again after a broken download: it goes on from there.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")"
url=https://www.robots.ox.ac.uk/~vgg/data/hands/downloads/hand_dataset.tar.gz
archive=hand_dataset.tar.gz

if [ -d hand_dataset ]; then
    echo "data/hand_dataset is there already; remove it to fetch Oxford's."
else
    if [ ! -f "$archive" ]; then
        curl --fail --location --retry 3 --continue-at - --output "$archive.part" "$url"
        mv "$archive.part" "$archive"
    fi
    # Unpacked beside its place and renamed, so that data/hand_dataset is whole or absent.
    rm -rf hand_dataset.part
    mkdir hand_dataset.part
    tar -xzf "$archive" -C hand_dataset.part
    mv hand_dataset.part/hand_dataset .
    rmdir hand_dataset.part
    rm "$archive"
fi
echo "Now run: python data/converter.py"
