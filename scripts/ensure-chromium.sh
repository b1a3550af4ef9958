#!/bin/sh
# Installs Debian's Chromium as it is without a window, in which tests look at the operator's page.
# Where that can't be done they are skipped, so nothing fails here.
set -eu

package=chromium-headless-shell

say() {
    echo "ensure-chromium: $*" >&2
}

give_up() {
    say "$*; the page is not looked at in a browser"
    exit 0
}

for browser in "$package" chromium chromium-browser google-chrome; do
    command -v "$browser" >/dev/null 2>&1 && exit 0
done

command -v apt-get >/dev/null 2>&1 || give_up "not a Debian: install Chromium by hand"
if [ "$(id -u)" -eq 0 ]; then
    as_root=
elif sudo -n true 2>/dev/null; then
    as_root=sudo
else
    give_up "install it as root: apt-get install $package"
fi

apt() {
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y "$@" >&2
}

install() {
    apt install --no-install-recommends "$package" fonts-dejavu-core
}

say "installing the package $package with apt-get ..."
install || { apt update && install; } || give_up "apt-get could not install $package"
