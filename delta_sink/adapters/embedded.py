"""A Kafka broker inside this process: for the demo, for tests, for a first try without a cluster.

librdkafka carries a mock cluster, and the wheel of confluent-kafka carries librdkafka. It speaks
Kafka's protocol on a real socket of 127.0.0.1: every client of this machine can use it, in this
process or in another, for as long as the process that made it lives.

What it has: produce, fetch with headers and timestamps, consumer groups (eager, cooperative and
KIP-848), committed offsets, transactions. What it does not have, and a test that needs it must
use Apache Kafka for:

* A partition keeps its newest 5 MiB; older records go without a trace.
* CreateTopics, DescribeTopics (so no topic ids), retention, compaction, authentication.
* Offsets by time: it answers "after the end" to every question.
* A quick rebalance: a group that has members waits `session.timeout.ms` less one second for them
  to join again (KIP-848 groups do not). Give consumers a short time-out.
* Checksums of transaction markers: a consumer with `check.crcs` takes them for damage.
* A fetch that found nothing is answered after `fetch.wait.max.ms`, even if a record arrives
  meanwhile: latency through it is up to that much.
* Nothing is stored: closing it loses all.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Final, Self

from confluent_kafka import cimpl

_PRODUCER: Final = 0
_ALL_BROKERS: Final = -1
_ERROR_TEXT_BYTES: Final = 512

_SIGNATURES: Final[dict[str, tuple[object, list[object]]]] = {
    "rd_kafka_conf_new": (ctypes.c_void_p, []),
    "rd_kafka_conf_set_log_cb": (None, [ctypes.c_void_p, ctypes.c_void_p]),
    "rd_kafka_new": (
        ctypes.c_void_p,
        [ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t],
    ),
    "rd_kafka_destroy": (None, [ctypes.c_void_p]),
    "rd_kafka_err2str": (ctypes.c_char_p, [ctypes.c_int]),
    "rd_kafka_mock_cluster_new": (ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_int]),
    "rd_kafka_mock_cluster_destroy": (None, [ctypes.c_void_p]),
    "rd_kafka_mock_cluster_bootstraps": (ctypes.c_char_p, [ctypes.c_void_p]),
    "rd_kafka_mock_topic_create": (
        ctypes.c_int,
        [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_int],
    ),
    "rd_kafka_mock_topic_delete": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_char_p]),
    "rd_kafka_mock_topic_set_error": (
        None,
        [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int],
    ),
    "rd_kafka_mock_broker_set_down": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_int32]),
    "rd_kafka_mock_broker_set_up": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_int32]),
    "rd_kafka_mock_broker_set_rtt": (
        ctypes.c_int,
        [ctypes.c_void_p, ctypes.c_int32, ctypes.c_int],
    ),
    "rd_kafka_mock_group_initial_rebalance_delay_ms": (
        None,
        [ctypes.c_void_p, ctypes.c_int32],
    ),
    "rd_kafka_mock_push_request_errors_array": (
        None,
        [ctypes.c_void_p, ctypes.c_int16, ctypes.c_size_t, ctypes.POINTER(ctypes.c_int)],
    ),
}


class EmbeddedBroker:
    """One broker that runs from construction until `close`; a context manager.

    Not for several threads at once, except that clients may of course use it meanwhile.
    """

    def __init__(
        self, topics: Mapping[str, int], *, rebalance_delay_ms: int = 100, brokers: int = 1
    ) -> None:
        """Start the broker and create `topics`, each with its number of partitions.

        Args:
            topics: names, and how many partitions each has.
            rebalance_delay_ms: how long a new group waits for further members.
            brokers: how many brokers the cluster has; partitions are spread over them.
        """
        self._library = _library()
        text = ctypes.create_string_buffer(_ERROR_TEXT_BYTES)
        conf = self._library.rd_kafka_conf_new()
        self._library.rd_kafka_conf_set_log_cb(conf, None)
        self._client = self._library.rd_kafka_new(_PRODUCER, conf, text, len(text))
        if not self._client:
            raise OSError(f"the embedded broker did not start: {text.value.decode()}")
        self._cluster = self._library.rd_kafka_mock_cluster_new(self._client, brokers)
        if not self._cluster:
            self._library.rd_kafka_destroy(self._client)
            raise OSError("the embedded broker did not start: no cluster")
        self._is_open = True
        bootstraps: bytes = self._library.rd_kafka_mock_cluster_bootstraps(self._cluster)
        self._bootstrap_servers = bootstraps.decode()
        self._library.rd_kafka_mock_group_initial_rebalance_delay_ms(
            self._cluster, rebalance_delay_ms
        )
        for name, partitions in topics.items():
            self.create_topic(name, partitions)

    @property
    def bootstrap_servers(self) -> str:
        """Return `host:port` of each broker, for `bootstrap.servers` of any client."""
        return self._bootstrap_servers

    def create_topic(self, name: str, partitions: int) -> None:
        """Create a topic. Raises ValueError if there is one of that name."""
        replicas = 1
        error = self._library.rd_kafka_mock_topic_create(
            self._open_cluster(), name.encode(), partitions, replicas
        )
        if error:
            raise ValueError(f"topic {name!r} was not created: {self._error_text(error)}")

    def delete_topic(self, name: str) -> None:
        """Delete a topic and all its records. Raises ValueError if there is none."""
        error = self._library.rd_kafka_mock_topic_delete(self._open_cluster(), name.encode())
        if error:
            raise ValueError(f"topic {name!r} was not deleted: {self._error_text(error)}")

    def set_down(self) -> None:
        """Drop every connection and refuse new ones, until `set_up`. Records stay."""
        self._library.rd_kafka_mock_broker_set_down(self._open_cluster(), _ALL_BROKERS)

    def set_up(self) -> None:
        """Accept connections again."""
        self._library.rd_kafka_mock_broker_set_up(self._open_cluster(), _ALL_BROKERS)

    def set_delay(self, delay_ms: int) -> None:
        """Answer every request from now on only after `delay_ms`."""
        self._library.rd_kafka_mock_broker_set_rtt(self._open_cluster(), _ALL_BROKERS, delay_ms)

    def set_topic_error(self, name: str, error: int) -> None:
        """Answer every question about topic `name` with Kafka's error code; 0 ends that."""
        self._library.rd_kafka_mock_topic_set_error(self._open_cluster(), name.encode(), error)

    def push_errors(self, api_key: int, errors: Sequence[int]) -> None:
        """Answer the next requests of one kind (0 Produce, 1 Fetch, …) with these errors.

        `errors` are Kafka's error codes in order, one a request, 0 for a request that goes
        through; -195 drops the connection instead of answering.
        """
        codes = (ctypes.c_int * len(errors))(*errors)
        self._library.rd_kafka_mock_push_request_errors_array(
            self._open_cluster(), api_key, len(errors), codes
        )

    def close(self) -> None:
        """Stop the broker; its records are gone. A second call does nothing."""
        if self._is_open:
            self._is_open = False
            self._library.rd_kafka_mock_cluster_destroy(self._cluster)
            self._library.rd_kafka_destroy(self._client)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _open_cluster(self) -> int:
        assert self._is_open, "the embedded broker is closed"
        cluster: int = self._cluster
        return cluster

    def _error_text(self, error: int) -> str:
        text: bytes = self._library.rd_kafka_err2str(error)
        return text.decode()


def _library() -> ctypes.CDLL:
    """Return the librdkafka that confluent-kafka itself runs on.

    The extension module is opened again: a symbol is looked up in it and in what it is linked
    to, so the library is found wherever and under whatever name a wheel keeps it (Linux, macOS,
    or linked in as a whole).
    """
    library = ctypes.CDLL(cimpl.__file__)
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype = result
        function.argtypes = arguments
    return library
