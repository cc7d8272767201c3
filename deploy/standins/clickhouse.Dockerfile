# A stand-in for clickhouse/clickhouse-server: the library that npm brought, in a process of Debian's Python.
FROM citystream-standin/python
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends wget
RUN useradd --uid 101 clickhouse && install -d -o clickhouse /var/lib/clickhouse
COPY libchdb.so chdb_server.py /
COPY --chmod=755 clickhouse.sh /entrypoint.sh
ENTRYPOINT ["/entrypoint.sh"]
