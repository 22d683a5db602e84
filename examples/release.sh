#!/usr/bin/env bash
# Release a hardened checkpoint: check, plan, compile, gate, sign, verify, push. The first failure stops it.
#
#   SIGNING_KEY=key.pem PUBLIC_KEY=key.pub.pem examples/release.sh SPEC OUT OWNER/NAME [TAG]
#
# SPEC        the edit spec (JSON)
# OUT         folder for the checkpoint; an earlier build there is replaced
# OWNER/NAME  the model repository on the Hub; created private where there is none
# TAG         a tag beside `build-DIGEST`, such as v1.0.0
#
# Log in first with `hf auth login`, or set HF_TOKEN. A pair of keys, once:
#
#   openssl ecparam -name prime256v1 -genkey -noout -out key.pem && chmod 600 key.pem
#   openssl ec -in key.pem -pubout -out key.pub.pem
#
# Interrupted or refused, run it again: finished stages come from the cache, uploaded files stay uploaded.
set -euo pipefail

[ $# -ge 3 ] || { sed -n '2,16p' "$0" >&2; exit 2; }
spec=$1 out=$2 repository=$3 tag=${4:-}
: "${SIGNING_KEY:?set it to the private key (PEM)}" "${PUBLIC_KEY:?set it to the public key (PEM)}"

step() { printf '\n== %s\n' "$1" >&2; }

step "check: is the spec right?"
excise check "$spec"

step "plan: what will be done, and what will it cost?"
excise plan "$spec"

step "compile: edits folded into plain weights, proven by the spec's gates"
excise compile "$spec" -o "$out" --force

step "gate: measure the result once more, from fresh pictures"
excise evaluate "$out" --spec "$spec" --fresh

step "sign: tie the files to this key"
excise sign "$out" --key "$SIGNING_KEY"

step "verify: as a user of the model will"
excise verify "$out" --key "$PUBLIC_KEY"

step "push: one commit, checked on the server, then tagged"
excise push "$out" "$repository" --key "$PUBLIC_KEY" --dry-run
excise push "$out" "$repository" --key "$PUBLIC_KEY" ${tag:+--tag "$tag"}
