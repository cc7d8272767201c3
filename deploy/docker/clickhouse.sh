#!/bin/bash
# Runs the command given to it with the password hashes that users.xml reads, and without the passwords.
set -euo pipefail
for user in OWNER SINK OPERATOR ANALYST; do
  password="CITYSTREAM_${user}_PASSWORD"
  hash=$(printf %s "${!password}" | sha256sum)
  export "${password}_SHA256=${hash%% *}"
  unset "$password"
done
exec "$@"
