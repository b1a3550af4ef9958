#!/bin/sh
# Makes the secrets of compose.yaml, each in a file of deploy/secrets; existing files stay.
# The token that Prometheus scrapes with is an administrator's, valid for ten years. It is signed here with the
# secret that the daemon checks it by; this needs Tenantry installed (`pip install .`).
set -eu

cd "$(dirname "$0")"
umask 077
mkdir -p secrets

random() { od -An -N32 -tx1 /dev/urandom | tr -d ' \n'; }
keep() { [ -s "secrets/$1" ] || printf '%s' "$2" >"secrets/$1"; }

keep rabbitmq_password "$(random)"
keep rabbitmq_user.conf "default_user = tenantry
default_pass = $(cat secrets/rabbitmq_password)
"
keep postgres_password "$(random)"
keep grafana_password "$(random)"
keep jwt_secret "$(random)"
keep rabbitmq_url "amqp://tenantry:$(cat secrets/rabbitmq_password)@rabbitmq:5672/"
keep database_url "postgresql://tenantry:$(cat secrets/postgres_password)@postgres:5432/tenantry"
[ -s secrets/metrics_token ] || TENANTRY_JWT_SECRET_FILE=secrets/jwt_secret \
    "${TENANTRY:-tenantry}" token --admin --ttl 3650d | tr -d '\n' >secrets/metrics_token
# Each secret is mounted into containers, whose own users read it: so the files are readable by all. Their names are well
# known, so any user who may enter the folder could read them: only the owner may.
chmod 0700 secrets
chmod 0644 secrets/*
echo "secrets are in $(pwd)/secrets"
