#!/bin/bash
# As the official image: properties from variables KAFKA_*, a log formatted at the first start, the broker as process 1.
set -euo pipefail
env | grep ^KAFKA_ | grep -v ^KAFKA_HEAP_OPTS= | while IFS== read -r name value; do
  name=${name#KAFKA_}
  name=${name//_/.}
  echo "${name,,}=$value"
done > /tmp/server.properties
java -cp '/opt/kafka/libs/*' kafka.tools.StorageTool format --ignore-formatted \
  --cluster-id 5L6g3nShT-eMCtK--X86sw --config /tmp/server.properties
exec java $KAFKA_HEAP_OPTS -cp '/opt/kafka/libs/*' kafka.Kafka /tmp/server.properties
