#!/bin/sh
# Puts Debian's Prometheus, with promtool, into a folder: unpacked, not installed, so that no service
# begins. Tests of deploy/ use it where it is; without it they are skipped.
set -eu

folder=${1:?usage: ensure-prometheus.sh FOLDER}
[ -x "$folder/usr/bin/promtool" ] && exit 0
if command -v promtool >/dev/null 2>&1 && command -v prometheus >/dev/null 2>&1; then
    exit 0
fi
if ! command -v apt-get >/dev/null 2>&1 || ! command -v dpkg >/dev/null 2>&1; then
    echo "ensure-prometheus: not a Debian: install Prometheus to have deploy/ checked" >&2
    exit 0
fi
mkdir -p "$folder"
cd "$folder"
apt-get download -qq prometheus >/dev/null 2>&1 || {
    [ "$(id -u)" -eq 0 ] && apt-get update -qq && apt-get download -qq prometheus >/dev/null
} || {
    echo "ensure-prometheus: apt-get download prometheus failed; deploy/ is not checked" >&2
    exit 0
}
dpkg -x prometheus_*.deb .
rm -f prometheus_*.deb
