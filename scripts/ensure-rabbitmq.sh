#!/bin/sh
# Makes sure that RabbitMQ is installed, by the machine's own package manager. It is not started
# as a service: Tenantry runs a private one where it needs one.
set -eu

present() {
    for server in \
        /usr/lib/rabbitmq/bin/rabbitmq-server \
        /opt/rabbitmq/sbin/rabbitmq-server \
        /opt/homebrew/opt/rabbitmq/sbin/rabbitmq-server \
        /usr/local/opt/rabbitmq/sbin/rabbitmq-server
    do
        [ -x "$server" ] && return 0
    done
    command -v rabbitmq-server >/dev/null 2>&1
}

say() {
    echo "ensure-rabbitmq: $*" >&2
}

give_up() {
    say "$*"
    exit 1
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif [ -t 0 ]; then
        sudo "$@"
    else
        sudo -n "$@"
    fi
}

policy=/usr/sbin/policy-rc.d
saved=$policy.before-rabbitmq
policy_set=no

# Debian starts a service as soon as its package is installed, unless this file says no.
forbid_services() {
    if [ -e "$policy" ]; then
        as_root mv "$policy" "$saved"
    fi
    policy_set=yes
    printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
    as_root chmod 755 "$policy"
}

allow_services() {
    [ "$policy_set" = yes ] || return 0
    policy_set=no
    as_root rm -f "$policy"
    if [ -e "$saved" ]; then
        as_root mv "$saved" "$policy"
    fi
}

apt() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y "$@" >&2
}

install_with_apt() {
    trap allow_services EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
    apt update || say "apt-get update failed; trying with what it knew before"
    forbid_services
    apt install --no-install-recommends rabbitmq-server ||
        give_up "apt-get could not install rabbitmq-server; install it by hand and try again"
    allow_services
}

# One that is named is the one that will be run.
if [ -n "${TENANTRY_TEST_RABBITMQ:-}" ] || present; then
    exit 0
fi

if command -v apt-get >/dev/null 2>&1; then
    [ "$(id -u)" -eq 0 ] || command -v sudo >/dev/null 2>&1 ||
        give_up "RabbitMQ is missing; install it as root: apt-get install rabbitmq-server"
    say "RabbitMQ is missing; installing the package rabbitmq-server with apt-get ..."
    install_with_apt
elif command -v brew >/dev/null 2>&1; then
    say "RabbitMQ is missing; installing the formula rabbitmq with brew ..."
    brew install --quiet rabbitmq >&2 ||
        give_up "brew could not install rabbitmq; install it by hand and try again"
else
    give_up "RabbitMQ is missing, and there is neither apt-get nor brew here: install" \
        "rabbitmq-server 3.10 or newer by your package manager"
fi

present || give_up "RabbitMQ was installed, but rabbitmq-server is not to be found"
say "RabbitMQ is installed"
