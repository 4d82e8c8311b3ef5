"""Apache Kafka: one broker that is its own controller, and what tests ask of it."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from confluent_kafka import (
    ConsumerGroupTopicPartitions,
    KafkaException,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    NewTopic,
    OffsetSpec,
    ResourceType,
)

from tests.services.install import kafka_jars
from tests.services.processes import NativeServer, ServerFailed, free_port

VERSION = "4.4.0"
ANSWER_S = 15.0

# A directory of one broker is formatted with this; any id will do.
_CLUSTER_ID = "ZGVsdGEtc2luay10ZXN0cw"

_OWN_TOPICS = frozenset({"__consumer_offsets", "__transaction_state", "__share_group_state"})

# What tests need to be quick: sessions of a second or two, groups that wait for nobody, cleaners
# that come at once.
SETTINGS: Mapping[str, str] = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    "auto.create.topics.enable": "false",
    "default.replication.factor": "1",
    "broker.session.timeout.ms": "3000",  # a killed broker comes back when its session is over
    "broker.heartbeat.interval.ms": "500",
    "num.network.threads": "2",
    "num.io.threads": "4",
    "offsets.topic.num.partitions": "4",
    "offsets.topic.replication.factor": "1",
    "transaction.state.log.num.partitions": "4",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "share.coordinator.state.topic.num.partitions": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "1000",
    "group.consumer.min.session.timeout.ms": "1000",
    "group.consumer.session.timeout.ms": "2500",
    "group.consumer.min.heartbeat.interval.ms": "100",
    "group.consumer.heartbeat.interval.ms": "300",
    "log.initial.task.delay.ms": "500",
    "log.retention.check.interval.ms": "500",
    "log.cleaner.backoff.ms": "300",
    "log.segment.delete.delay.ms": "500",
    "log.retention.ms": "-1",  # records of tests may be years old; a topic may say otherwise
}


class Server(Protocol):
    """How a server is run: as a process or in a container."""

    def start(self) -> None:
        """Return when it is ready, with what it had stored before."""

    def stop(self) -> None:
        """Return when it has ended in order."""

    def kill(self) -> None:
        """Return when it is dead."""


class Kafka:
    """A running broker. Topics come from `create_topic` alone."""

    def __init__(self, server: Server, bootstrap_servers: str, data: Path | None = None) -> None:
        self.server = server
        self.bootstrap_servers = bootstrap_servers
        self.data = data
        """The folder of its logs, where this machine can reach it."""
        self._client: Any = None

    # --- the broker itself ---

    def stop(self) -> None:
        """Return when the broker has shut down in order."""
        self.server.stop()

    def kill(self) -> None:
        """Return when the broker is dead, as after a power failure without loss of disks."""
        self.server.kill()

    def start(self) -> None:
        """Return when the broker serves again what it had."""
        self.server.start()

    def restart(self) -> None:
        """Return when the broker has gone and come again."""
        self.stop()
        self.start()

    def lose(self, name: str, partition: int) -> None:
        """Forget all records of a partition, the broker being killed: a disk that came back empty.

        The topic keeps its id, and its offsets begin anew.
        """
        assert self.data is not None, "only the disk of a broker on this machine can be lost"
        folder = self.data / f"{name}-{partition}"
        for path in folder.iterdir():
            if path.name != "partition.metadata":
                path.unlink()

    # --- topics and groups ---

    @property
    def admin(self) -> Any:
        """The admin client; it lives as long as this object."""
        if self._client is None:
            self._client = admin_client(self.bootstrap_servers)
        return self._client

    def create_topic(self, name: str, partitions: int, **config: str) -> None:
        """Return when the topic can be used. `config`: `cleanup_policy` for `cleanup.policy`."""
        settings = {key.replace("_", "."): value for key, value in config.items()}
        topic = NewTopic(name, num_partitions=partitions, replication_factor=1, config=settings)
        _each(self.admin.create_topics([topic], operation_timeout=ANSWER_S))
        self._await(lambda: self._serves(name, partitions), f"topic {name}")

    def delete_topic(self, name: str) -> None:
        """Return when no broker knows the topic."""
        _each(self.admin.delete_topics([name], operation_timeout=ANSWER_S))
        self._await(lambda: self.partitions_of(name) == 0, f"no topic {name}")

    def delete_all_topics(self) -> None:
        """Return when there are no topics but Kafka's own."""
        known = self.admin.list_topics(timeout=ANSWER_S).topics
        names = known.keys() - _OWN_TOPICS
        if names:
            _each(self.admin.delete_topics(sorted(names), operation_timeout=ANSWER_S))
        self._await(
            lambda: self.admin.list_topics(timeout=ANSWER_S).topics.keys() <= _OWN_TOPICS,
            "no topics",
        )

    def add_partitions(self, name: str, total: int) -> None:
        """Return when the topic has `total` partitions."""
        _each(self.admin.create_partitions([NewPartitions(name, total)], request_timeout=ANSWER_S))
        self._await(lambda: self._serves(name, total), f"{total} partitions of {name}")

    def alter_topic(self, name: str, **config: str) -> None:
        """Return when the topic's configuration is so: `retention_ms` for `retention.ms`."""
        entries = [
            ConfigEntry(key.replace("_", "."), value, incremental_operation=AlterConfigOpType.SET)
            for key, value in config.items()
        ]
        resource = ConfigResource(ResourceType.TOPIC, name, incremental_configs=entries)
        _each(self.admin.incremental_alter_configs([resource], request_timeout=ANSWER_S))

    def partitions_of(self, name: str) -> int:
        """Return how many partitions the topic has; 0 if there is none."""
        found = self.admin.list_topics(timeout=ANSWER_S).topics.get(name)
        return 0 if found is None or found.error is not None else len(found.partitions)

    def topic_id(self, name: str) -> str:
        """Return the id that the brokers gave the topic."""
        futures = self.admin.describe_topics(TopicCollection([name]), request_timeout=ANSWER_S)
        return str(futures[name].result().topic_id)

    def delete_records(self, name: str, offsets: Mapping[int, int]) -> None:
        """Return when each partition begins at its offset."""
        places = [TopicPartition(name, partition, at) for partition, at in offsets.items()]
        _each(self.admin.delete_records(places, operation_timeout=ANSWER_S))

    def first_offset(self, name: str, partition: int) -> int:
        """Return the first offset that the partition still has."""
        return self._offset(name, partition, OffsetSpec.earliest())

    def end_offset(self, name: str, partition: int) -> int:
        """Return the offset that the next record will get."""
        return self._offset(name, partition, OffsetSpec.latest())

    def delete_group(self, group: str) -> None:
        """Return when the group and its offsets are gone; it must have no members."""
        _each(self.admin.delete_consumer_groups([group], request_timeout=ANSWER_S))

    def committed(self, group: str, name: str) -> dict[int, int]:
        """Return the offsets that the group has committed for a topic, by partition."""
        asked = ConsumerGroupTopicPartitions(group)
        futures = self.admin.list_consumer_group_offsets([asked], request_timeout=ANSWER_S)
        places = futures[group].result().topic_partitions
        return {
            place.partition: place.offset
            for place in places
            if place.topic == name and place.offset >= 0
        }

    def members_of(self, group: str) -> list[str]:
        """Return the members of the group: `group.instance.id` where they have one."""
        members = self._group(group).members
        return [member.group_instance_id or member.member_id for member in members]

    def group_protocol(self, group: str) -> str:
        """Return how the group rebalances: `CONSUMER` (KIP-848) or `CLASSIC` and its assignor."""
        described = self._group(group)
        kind: str = described.type.name
        return kind if kind == "CONSUMER" else f"{kind} {described.partition_assignor}"

    def _group(self, group: str) -> Any:
        """Return the group's description, once its coordinator is there to give it."""
        deadline_s = time.monotonic() + ANSWER_S
        while True:
            futures = self.admin.describe_consumer_groups([group], request_timeout=ANSWER_S)
            try:
                return futures[group].result()
            except KafkaException as error:
                if not error.args[0].retriable() or time.monotonic() > deadline_s:
                    raise
            time.sleep(0.1)

    def _offset(self, name: str, partition: int, spec: OffsetSpec) -> int:
        place = TopicPartition(name, partition)
        futures = self.admin.list_offsets({place: spec}, request_timeout=ANSWER_S)
        offset: int = futures[place].result().offset
        return offset

    def _serves(self, name: str, partitions: int) -> bool:
        """Whether the topic is there and its leader answers for each partition.

        A new topic shows in the metadata before its leader knows of it.
        """
        if self.partitions_of(name) != partitions:
            return False
        places = {TopicPartition(name, number): OffsetSpec.latest() for number in range(partitions)}
        try:
            _each(self.admin.list_offsets(places, request_timeout=ANSWER_S))
        except KafkaException:
            return False  # not its leader, or there is none yet
        return True

    def _await(self, is_so: Any, what: str) -> None:
        deadline_s = time.monotonic() + ANSWER_S
        while not is_so():
            if time.monotonic() > deadline_s:
                raise ServerFailed(f"Kafka: not within {ANSWER_S:.0f} s: {what}")
            time.sleep(0.05)


def admin_client(bootstrap_servers: str) -> AdminClient:
    """Return an admin client that logs nothing."""
    return AdminClient({"bootstrap.servers": bootstrap_servers, "log_level": 0})


def answers(bootstrap_servers: str) -> bool:
    """Whether a broker answers at this address now."""
    try:
        return bool(admin_client(bootstrap_servers).list_topics(timeout=2).brokers)
    except KafkaException:
        return False


def native(folder: Path) -> Kafka:
    """Return a broker as a process, with its data in `folder`; it is not started yet.

    Raises:
        CannotInstall: Java or Maven is missing.
    """
    jars = f"{kafka_jars()}/*"
    port, controller_port = free_port(), free_port()
    listeners = f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}"
    properties = {
        **SETTINGS,
        "controller.quorum.bootstrap.servers": f"127.0.0.1:{controller_port}",
        "listeners": listeners,
        "advertised.listeners": listeners,
        "log.dirs": str(folder / "data"),
    }
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "server.properties"
    config.write_text("".join(f"{key}={value}\n" for key, value in properties.items()))
    logging = folder / "log4j2.properties"
    logging.write_text(_LOGGING, encoding="ascii")
    java = ["java", f"-Dlog4j2.configurationFile={logging}", "-XX:TieredStopAtLevel=1"]
    tool = [*java, "-Xmx128m", "-cp", jars, "kafka.tools.StorageTool"]
    done = subprocess.run(
        [*tool, "format", "--standalone", "-t", _CLUSTER_ID, "-c", str(config)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if done.returncode != 0:
        raise ServerFailed(f"Kafka's storage could not be formatted:\n{done.stdout}{done.stderr}")
    server = NativeServer(
        "kafka",
        [
            *("java", f"-Dlog4j2.configurationFile={logging}", "-Xms256m", "-Xmx256m"),
            *("-XX:+UseSerialGC", "-cp", jars, "kafka.Kafka", str(config)),
        ],
        folder=folder,
        ready=lambda: answers(f"127.0.0.1:{port}"),
    )
    return Kafka(server, f"127.0.0.1:{port}", folder / "data")


_LOGGING = """\
status=warn
appender.out.type=Console
appender.out.name=out
appender.out.layout.type=PatternLayout
appender.out.layout.pattern=%d %p %c{1} %m%n
rootLogger.level=INFO
rootLogger.appenderRef.out.ref=out
"""


def _each(futures: Mapping[Any, Any]) -> None:
    for future in futures.values():
        future.result()
