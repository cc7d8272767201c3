#!/bin/bash
# As the official image: ends unless the configuration says where the users are, and serves as the user clickhouse.
set -euo pipefail
config=/etc/clickhouse-server/config.xml
python -c "
import sys
from xml.etree import ElementTree
sys.exit(not ElementTree.parse('$config').findtext('user_directories/users_xml/path'))
" || { echo "$config has no user_directories.users_xml.path" >&2; exit 1; }
[ "${1:-}" != -- ] || shift
exec setpriv --reuid=clickhouse --regid=clickhouse --clear-groups \
  python -P /chdb_server.py /libchdb.so --config-file "$config" "$@"
