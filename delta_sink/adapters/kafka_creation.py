"""Creating topics that the sink itself writes to; the topics that it reads are their owner's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, NewTopic
from confluent_kafka.error import KafkaError

from delta_sink.adapters.kafka_client import is_refusal, make_client, refusal, said
from delta_sink.errors import BrokerUnavailable
from delta_sink.ports import Telemetry

ANSWER_S_MAX = 15.0


def ensure_topics(
    config: Mapping[str, str], partitions: Mapping[str, int], *, telemetry: Telemetry | None = None
) -> list[str]:
    """Return the names that had to be created; all of `partitions` exist afterwards.

    A topic that exists keeps its number of partitions. Replication is the brokers' default.

    Raises:
        BrokerUnavailable: no answer in time.
        FatalError: we may not create topics.
    """
    settings = {"client.id": "delta-sink", **config}
    client: Any = make_client(AdminClient, settings, telemetry)
    doing = "creating topics"
    try:
        known = client.list_topics(timeout=ANSWER_S_MAX).topics
        missing = [name for name in partitions if name not in known or known[name].error]
        if not missing:
            return []
        new = [NewTopic(name, num_partitions=partitions[name]) for name in missing]
        created = []
        answers = client.create_topics(
            new, operation_timeout=ANSWER_S_MAX, request_timeout=ANSWER_S_MAX
        )
        for name, future in answers.items():
            try:
                future.result(timeout=2 * ANSWER_S_MAX)
                created.append(name)
            except KafkaException as error:
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise
    except KafkaException as error:
        told = error.args[0]
        if is_refusal(told):
            raise refusal(doing, told) from error
        raise BrokerUnavailable(f"kafka: {doing}: no answer: {said(told)}") from error
    except TimeoutError as error:  # librdkafka has kept its own time-out to itself
        raise BrokerUnavailable(f"kafka: {doing}: no answer") from error
    return created
