#!/bin/sh
# Puts AsyncAPI's own parser, from npm, into a folder. Tests hold tenants' documents with it where it is;
# without it, or without node, they are skipped.
set -eu

folder=${1:?usage: ensure-asyncapi.sh FOLDER}
version=3.6.3
[ -f "$folder/node_modules/@asyncapi/parser/package.json" ] && exit 0
if ! command -v npm >/dev/null 2>&1 || ! command -v node >/dev/null 2>&1; then
    echo "ensure-asyncapi: no node here: tenants' AsyncAPI documents are not held with its parser" >&2
    exit 0
fi
mkdir -p "$folder"
# A registry that does not answer is not waited for: npm would, for many minutes.
timeout 90 npm install --prefix "$folder" --no-fund --no-audit --ignore-scripts --silent \
    --fetch-timeout=20000 --fetch-retries=1 "@asyncapi/parser@$version" || {
    rm -rf "$folder"
    echo "ensure-asyncapi: npm install @asyncapi/parser failed; the documents are not held with it" >&2
}
