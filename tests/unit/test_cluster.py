import asyncio

from faust.transport.drivers.aiokafka import server_list

from citystream.settings import load_settings
from streams.cluster import Cluster
from streams.transport.app import BatchApp


def test_every_kind_of_client_is_given_every_server() -> None:
    servers = ["kafka-1:9092", "kafka-2:9092", "10.0.0.3:9093"]
    cluster = load_settings({"CITYSTREAM_KAFKA_BOOTSTRAP": "kafka-1:9092, kafka-2:9092,10.0.0.3:9093"}).cluster
    assert cluster.kafka_python()["bootstrap_servers"] == servers
    assert cluster.aiokafka()["bootstrap_servers"] == servers
    assert cluster.librdkafka()["bootstrap.servers"] == str(cluster) == ",".join(servers)
    assert asyncio.run(_of_worker(cluster)) == (servers, servers)


async def _of_worker(cluster: Cluster) -> tuple[list[str], list[str]]:
    app = BatchApp("processor", cluster, {}, [])
    return server_list(app.transport.url, 0), app.producer._settings_default()["bootstrap_servers"]
