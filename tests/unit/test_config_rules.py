"""Each rule of the configuration: the file that breaks it, and the path and sentence that say so."""

from __future__ import annotations

import pytest

from delta_sink import rules
from delta_sink.config import Settings, Source, load
from delta_sink.errors import ConfigError
from delta_sink.properties import KafkaProperties

SMALLEST = """
name: orders
kafka: {bootstrap.servers: 'localhost:9092'}
source: {topics: [orders]}
value: {format: json}
table: {uri: /tmp/orders}
"""
SCHEMA = """
table:
  schema:
    - {name: id, type: long, nullable: false}
    - {name: at, type: timestamp}
    - {name: lines, type: {array: string}}
"""


def loaded(*texts: str) -> Settings:
    sources = [Source(f"{i}.yaml", text) for i, text in enumerate((SMALLEST, *texts))]
    return load(sources, [], env={}, read_file=open)


def problems(*texts: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        loaded(*texts)
    return list(caught.value.problems)


FORM_CASES = [
    ("name: ''", "name: expected letters, digits, '_', '.' and '-' only, got ''"),
    ("name: a/b", "name: expected letters, digits, '_', '.' and '-' only, got 'a/b'"),
    (
        "name: 7",
        "name: expected letters, digits, '_', '.' and '-' only; put it in quotes, got 7",
    ),
    ("kafka: [a]", "kafka: expected a mapping, got a list"),
    ("kafka: {a: {b: 1}}", "kafka.a: expected text, a number, true or false, got a mapping"),
    ("source: {topics: orders}", "source.topics: expected a list, got 'orders'"),
    (
        "source: {topics: [a, 'b c']}",
        (
            "source.topics[1]: expected a topic name: 1 to 249 letters, digits, '_', '.' and '-', "
            "got 'b c'"
        ),
    ),
    ("source: {topics: ['..']}", "source.topics[0]: expected a topic name: "),
    (
        "source: {topics: null, topics_regex: 'a('}",
        "source.topics_regex: expected a regular expression: missing ), ",
    ),
    (
        "source: {topic_ids: maybe}",
        "source.topic_ids: expected one of required or none, got 'maybe'",
    ),
    (
        "source: {on_offset_gap: ignore}",
        "source.on_offset_gap: expected one of fail or skip, got 'ignore'",
    ),
    ("source: {start: middle}", "source.start: expected earliest, latest, {timestamp: "),
    ("source: {start: {group: a, timestamp: b}}", "source.start: expected earliest, latest, "),
    (
        "source: {start: {timestamp: gestern}}",
        "source.start.timestamp: expected a time like 2026-11-01T00:00:00Z, got 'gestern'",
    ),
    (
        "source: {start: {timestamp: 1793491200}}",
        "source.start.timestamp: expected a time like 2026-11-01T00:00:00Z, got a number",
    ),
    (
        "source: {start: {timestamp: '1969-12-31T23:59:59Z'}}",
        "source.start.timestamp: expected a time like 2026-11-01T00:00:00Z, not before 1970, ",
    ),
    ("source: {start: {group: ''}}", "source.start.group: expected the name of a consumer group"),
    ("source: {start: {from: 1}}", "source.start.from: unknown key; expected earliest, latest, "),
    (
        "source: {start: {offsets: {}}}",
        "source.start.offsets: expected {topic: {partition: offset}}",
    ),
    (
        "source: {start: {offsets: {orders: 5}}}",
        "source.start.offsets.orders: expected {partition: offset}",
    ),
    (
        "source: {start: {offsets: {orders: {x: 5}}}}",
        "source.start.offsets.orders.x: expected a whole number for partition and offset",
    ),
    (
        "source: {start: {offsets: {orders: {0: -1}}}}",
        "source.start.offsets.orders.0: expected 0 or more for partition and offset",
    ),
    (
        "value: {tombstones: drop}",
        "value.tombstones: expected one of skip, dead_letter or null_row, got 'drop'",
    ),
    ("value: {format: xml}", "value.format: expected one of json, json_schema, avro, "),
    ("value: {binary: raw}", "value.binary: expected one of base64 or hex, got 'raw'"),
    ("value: {nesting_max: 0}", "value.nesting_max: expected a number from 1 to 200, got 0"),
    (
        "value: {record_bytes_max: 1GiB}",
        "value.record_bytes_max: expected 1KiB or more, at most 256MiB, got '1GiB'",
    ),
    (
        "registry: {url: 'ftp://x'}",
        "registry.url: expected an address like https://host:port",
    ),
    (
        "registry: {url: 'https://x:port'}",
        "registry.url: expected an address like https://host:port",
    ),
    (
        "registry: {url: 'https://u:p@x'}",
        "registry.url: an address holds no user or password; they have keys of their own",
    ),
    ("registry: {url: 'https://x/a b'}", "registry.url: an address holds no spaces"),
    ("registry: {}", "registry.url: missing; address of the registry; "),
    (
        "table: {uri: 'gs://lake/orders'}",
        (
            "table.uri: gs:// is not in this version; expected s3:// or a local path, "
            "got 'gs://lake/orders'"
        ),
    ),
    ("table: {uri: 'abfss://c@a.dfs/x'}", "table.uri: abfss:// is not in this version; "),
    ("table: {uri: 'az://c/x'}", "table.uri: az:// is not in this version; "),
    ("table: {uri: 'hdfs://x/y'}", "table.uri: expected s3://, s3a://, file:// or a local path"),
    ("table: {uri: 's3://'}", "table.uri: expected a bucket's name after s3://"),
    ("table: {uri: 's3://lake/a/../b'}", "table.uri: a path in a bucket has no empty, '.' or "),
    ("table: {uri: 's3://lake//a'}", "table.uri: a path in a bucket has no empty, '.' or "),
    ("table: {uri: 'file://data'}", "table.uri: expected three slashes: file:///path"),
    ("table: {uri: 3}", "table.uri: expected s3://bucket/path or a local path, got 3"),
    ("table: {schema: id long}", "table.schema: expected a list, got 'id long'"),
    ("table: {schema: [id]}", "table.schema[0]: expected a mapping, got 'id'"),
    (
        "table: {metadata_columns: [topic, key, size]}",
        (
            "table.metadata_columns[2]: expected one of topic, partition, offset, timestamp, key or "
            "headers, got 'size'"
        ),
    ),
    (
        "table: {parquet: {compression: lz4}}",
        "table.parquet.compression: expected one of zstd, snappy, gzip or none, got 'lz4'",
    ),
    (
        "table: {parquet: {dictionary: some}}",
        "table.parquet.dictionary: expected auto, true, false or a list of columns, got 'some'",
    ),
    (
        "table: {comment: 5}",
        "table.comment: expected text that is not empty; put it in quotes, got 5",
    ),
    (
        "table: {storage: {fsync: yes}}",
        "table.storage.fsync: expected true or false, got 'yes'",
    ),
    (
        "table: {storage: {secret_access_key: 5}}",
        "table.storage.secret_access_key: expected text; put it in quotes",
    ),
    (
        "table: {storage: {AWS_S3_LOCKING_PROVIDER: dynamodb}}",
        "table.storage.AWS_S3_LOCKING_PROVIDER: refused: delta-rs removed its DynamoDB log store, ",
    ),
    (
        "table: {storage: {s3_locking_provider: dynamodb}}",
        "table.storage.s3_locking_provider: refused: delta-rs removed its DynamoDB log store, ",
    ),
    (
        "table: {storage: {AWS_ACCESS_KEY_ID: x}}",
        "table.storage.AWS_ACCESS_KEY_ID: unknown key; did you mean 'access_key_id'?",
    ),
    (
        "table: {log_store: zookeeper}",
        "table.log_store.type: expected one of conditional_put or dynamodb, got 'zookeeper'",
    ),
    (
        "table: {properties: {a: [1]}}",
        "table.properties.a: expected text, a number, true or false, got a list",
    ),
    ("flush: {interval_ms: 0}", "flush.interval_ms: expected a number from 1 to 86400000, got 0"),
    ("flush: {interval_ms: 1.5}", "flush.interval_ms: expected a whole number, got 1.5"),
    ("flush: {interval_ms: true}", "flush.interval_ms: expected a whole number, got true"),
    ("flush: {interval_ms: 1s}", "flush.interval_ms: expected a whole number, got '1s'"),
    ("flush: {rows_max: 0}", "flush.rows_max: expected 1 or more, got 0"),
    (
        "flush: {bytes_max: 64 mebibytes}",
        "flush.bytes_max: expected bytes or a size like 64MiB, got '64 mebibytes'",
    ),
    ("flush: {bytes_max: 1.5GiB}", "flush.bytes_max: expected bytes or a size like 64MiB, "),
    (
        "flush: {intervall_ms: 1}",
        "flush.intervall_ms: unknown key; did you mean 'interval_ms'?",
    ),
    ("flush: {zzz: 1}", "flush.zzz: unknown key"),
    ("flush: 5", "flush: expected a mapping, got a number"),
    ("interval_ms: 5", "interval_ms: unknown key; did you mean 'flush.interval_ms'?"),
    ("memory: {bytes_max: 255MiB}", "memory.bytes_max: expected 256MiB or more, or auto, got "),
    ("memory: {bytes_max: all}", "memory.bytes_max: expected bytes or a size like 64MiB, or auto"),
    ("errors: {tolerance: some}", "errors.tolerance: expected one of none or all, got 'some'"),
    ("errors: {ratio_max: 0}", "errors.ratio_max: expected a number above 0, at most 1, got 0"),
    ("errors: {ratio_max: 1.01}", "errors.ratio_max: expected a number above 0, at most 1, "),
    ("errors: {ratio_max: 5%}", "errors.ratio_max: expected a number above 0, at most 1, "),
    (
        "errors: {ratio_window_records: 10}",
        "errors.ratio_window_records: expected a number from 1000 to ",
    ),
    ("locks: {store: redis}", "locks.store: expected one of sqlite or dynamodb, got 'redis'"),
    ("http: {port: 65536}", "http.port: expected a number from 0 to 65535, got 65536"),
    ("shutdown: {grace_ms: -1}", "shutdown.grace_ms: expected a number from 0 to "),
    ("logs: {format: xml}", "logs.format: expected one of human or json, got 'xml'"),
    ("logs: {level: trace}", "logs.level: expected one of debug, info, warning or error, got "),
    ("vacuum: {cron: daily}", "vacuum.cron: expected five fields: minute hour day month weekday"),
    (
        "vacuum: {cron: '60 * * * *'}",
        "vacuum.cron: expected *, numbers from 0 to 59, a-b or /n as minute, got '60 * * * *'",
    ),
    (
        "vacuum: {cron: '* 24 * * *'}",
        "vacuum.cron: expected *, numbers from 0 to 23, a-b or /n as ",
    ),
    ("vacuum: {cron: '* * 0 * *'}", "vacuum.cron: expected *, numbers from 1 to 31, "),
    ("vacuum: {cron: '* * * 13 *'}", "vacuum.cron: expected *, numbers from 1 to 12, "),
    ("vacuum: {cron: '* * * * 8'}", "vacuum.cron: expected *, numbers from 0 to 7, "),
    ("vacuum: {cron: '5-1 * * * *'}", "vacuum.cron: expected *, numbers from 0 to 59, "),
    ("vacuum: {cron: '*/0 * * * *'}", "vacuum.cron: expected *, numbers from 0 to 59, "),
    ("vacuum: {cron: '1/5 * * * *'}", "vacuum.cron: expected *, numbers from 0 to 59, "),
    ("vacuum: {cron: '1,, * * * *'}", "vacuum.cron: expected *, numbers from 0 to 59, "),
]


@pytest.mark.parametrize(("text", "problem"), FORM_CASES)
def test_forms(text, problem):
    [found] = problems(text)
    assert found.startswith(problem)


@pytest.mark.parametrize(
    "cron", ["* * * * *", "*/15 0-6/2 1,15 1-12 0-7", "0 3 * * 1-5", "59  23 31 12 7"]
)
def test_cron(cron):
    assert loaded(f"vacuum: {{cron: '{cron}'}}").vacuum.cron == " ".join(cron.split())


DELTA_OFF = [
    "delta.appendOnly: true",
    "delta.enableChangeDataFeed: false",
    "delta.enableDeletionVectors: false",
    "delta.columnMapping.mode: none",
    "delta.logRetentionDuration: interval 24 hours",
    "delta.logRetentionDuration: interval 1 day 3 hours",
    "delta.deletedFileRetentionDuration: interval 2 weeks",
    "delta.checkpointPolicy: classic",
    "delta.targetFileSize: 1gb",
    "owner: me",
]


@pytest.mark.parametrize("written", DELTA_OFF)
def test_properties_that_a_table_may_have(written):
    key, _, value = written.partition(": ")
    assert loaded(f"table: {{properties: {{{written}}}}}").table.properties[key] == value


RULE_CASES = [
    ("kafka: {group.id: x}", "kafka.group.id: not yours to set: the consumer group is the sink's"),
    ("kafka: {enable.auto.commit: true}", "kafka.enable.auto.commit: not yours to set: "),
    ("kafka: {enable.auto.offset.store: true}", "kafka.enable.auto.offset.store: not yours to"),
    ("kafka: {auto.offset.reset: latest}", "kafka.auto.offset.reset: not yours to set: where to "),
    ("kafka: {enable.partition.eof: true}", "kafka.enable.partition.eof: not yours to set: "),
    ("kafka: {allow.auto.create.topics: true}", "kafka.allow.auto.create.topics: not yours to "),
    ("kafka: {metadata.broker.list: x}", "kafka.metadata.broker.list: not yours to set: write "),
    ("kafka: {acks: 1}", "kafka.acks: not yours to set: a dead letter counts only when all "),
    ("kafka: {transactional.id: x}", "kafka.transactional.id: not yours to set: "),
    ("kafka: {oauth_cb: x}", "kafka.oauth_cb: refused: a callback is code, and a file holds none"),
    ("kafka: {rebalance_cb: x}", "kafka.rebalance_cb: refused: a callback is code"),
    ("kafka: {on_delivery: x}", "kafka.on_delivery: refused: a callback is code"),
    ("kafka: {plugin.library.paths: x}", "kafka.plugin.library.paths: refused: it loads code"),
    ("kafka: {Plugin.Library.Paths: x}", "kafka.Plugin.Library.Paths: refused: it loads code"),
    ("kafka: {ssl.engine.location: x}", "kafka.ssl.engine.location: refused: it loads code"),
    ("kafka: {ssl.providers: x}", "kafka.ssl.providers: refused: it loads code"),
    (
        "kafka: {sasl.kerberos.kinit.cmd: x}",
        "kafka.sasl.kerberos.kinit.cmd: refused: it runs a command",
    ),
    ("kafka: {sasl.jaas.config: x}", "kafka.sasl.jaas.config: refused: it loads code, and only "),
    (
        "kafka: {sasl.oauthbearer.assertion.file: x}",
        "kafka.sasl.oauthbearer.assertion.file: refused: it reads any file",
    ),
    (
        "kafka: {test.mock.num.brokers: 3}",
        "kafka.test.mock.num.brokers: refused: it replaces the brokers by a mock",
    ),
    (
        "kafka: {bootstrap.servers: null}",
        "kafka.bootstrap.servers: missing; expected host:port, or several with commas between",
    ),
    ("kafka: {bootstrap.servers: ' '}", "kafka.bootstrap.servers: missing; expected host:port"),
    (
        "kafka: {group.protocol: consumer, session.timeout.ms: 6000}",
        "kafka.session.timeout.ms: only for group.protocol classic; ",
    ),
    (
        "kafka: {sasl.oauthbearer.token.endpoint.url: 'http://idp/token'}",
        "kafka.sasl.oauthbearer.token.endpoint.url: expected https, because the host is not local",
    ),
    (
        "kafka: {sasl.oauthbearer.token.endpoint.url: 'file:///etc/passwd'}",
        "kafka.sasl.oauthbearer.token.endpoint.url: expected https, ",
    ),
    (
        "kafka: {queued.max.messages.kbytes: 262144}\nmemory: {bytes_max: 256MiB}",
        (
            "kafka.queued.max.messages.kbytes: expected at most half of memory.bytes_max, which is "
            "256MiB"
        ),
    ),
    (
        "source: {topics: null}",
        "source.topics: missing; expected a list of topics, or source.topics_regex",
    ),
    (
        "source: {topics_regex: 'o.*'}",
        "source.topics_regex: expected either topics or topics_regex, got both",
    ),
    ("source: {topics: []}", "source.topics: expected at least one topic"),
    ("source: {topics: [a, b, a]}", "source.topics: 'a' is there 2 times"),
    (
        "source: {start: {offsets: {invoices: {0: 1}}}}",
        "source.start.offsets.invoices: the sink does not read this topic",
    ),
    (
        "source: {start: {group: orders}}",
        (
            "source.start.group: expected another group; this one is the sink's own, because the "
            "sink is named 'orders'"
        ),
    ),
    ("value: {format: avro}", "value.format: 'avro' is not in this version; expected json"),
    ("value: {format: protobuf}", "value.format: 'protobuf' is not in this version; "),
    ("value: {format: json_schema}", "value.format: 'json_schema' is not in this version; "),
    ("value: {format: string}", "value.format: 'string' is not in this version; "),
    ("value: {format: bytes}", "value.format: 'bytes' is not in this version; "),
    (
        "errors: {tolerance: all}",
        "errors.dead_letter_topic: missing; errors.tolerance 'all' needs a topic for bad records",
    ),
    (
        "value: {tombstones: dead_letter}",
        "errors.dead_letter_topic: missing; value.tombstones 'dead_letter' needs a topic",
    ),
    (
        "errors: {tolerance: all, dead_letter_topic: orders}",
        (
            "errors.dead_letter_topic: the sink reads 'orders' itself, and dead letters would come "
            "back for ever"
        ),
    ),
    (
        "errors: {dead_letter_topic: orders.dlq}\nsource: {topics: null, topics_regex: 'orders.*'}",
        "errors.dead_letter_topic: the sink reads 'orders.dlq' itself, ",
    ),
    (
        "value: {tombstones: null_row}" + SCHEMA,
        "value.tombstones: null_row makes rows of nulls, and column 'id' of table.schema is not ",
    ),
    ("table: {schema: [{name: a, type: int}]}", "table.schema[0].type: "),
    ("table: {schema: [{name: _kafka_topic, type: string}]}", "table.schema[0].name: "),
    ("table: {schema: [{name: a, type: long}, {name: A, type: long}]}", "table.schema[1].name: "),
    (
        "table: {metadata_columns: [topic, topic]}",
        "table.metadata_columns: 'topic' is there 2 times",
    ),
    (
        SCHEMA + "  partition_by: [day]",
        "table.partition_by: there is no column 'day' in table.schema",
    ),
    (SCHEMA + "  partition_by: [id, id]", "table.partition_by: 'id' is there 2 times"),
    (
        SCHEMA + "  partition_by: [lines]",
        "table.partition_by: column 'lines' is a struct, list or ",
    ),
    (
        "table: {schema: [{name: a, type: long}], metadata_columns: [], partition_by: [a]}",
        "table.partition_by: at least one column must be left in the files",
    ),
    (
        SCHEMA + "  parquet: {bloom_filter_columns: [x]}",
        "table.parquet.bloom_filter_columns: there is no column 'x' in table.schema",
    ),
    (
        SCHEMA + "  parquet: {dictionary: [x]}",
        "table.parquet.dictionary: there is no column 'x' in table.schema",
    ),
    (
        "table: {parquet: {compression: gzip, compression_level: 10}}",
        "table.parquet.compression_level: gzip has levels from 1 to 9",
    ),
    (
        "table: {properties: {delta.setTransactionRetentionDuration: interval 1 day}}",
        "table.properties.delta.setTransactionRetentionDuration: refused: Delta would forget how ",
    ),
    (
        "table: {properties: {delta.enableChangeDataFeed: true}}",
        "table.properties.delta.enableChangeDataFeed: this sink does not create tables with the ",
    ),
    (
        "table: {properties: {delta.columnMapping.mode: name}}",
        "table.properties.delta.columnMapping.mode: this sink does not create tables with column ",
    ),
    (
        "table: {properties: {delta.enableRowTracking: true}}",
        "table.properties.delta.enableRowTracking: this sink does not create tables with row ",
    ),
    (
        "table: {properties: {delta.enableDeletionVectors: true}}",
        "table.properties.delta.enableDeletionVectors: this sink does not create tables with ",
    ),
    (
        "table: {properties: {delta.enableInCommitTimestamps: true}}",
        "table.properties.delta.enableInCommitTimestamps: this sink does not create tables with ",
    ),
    (
        "table: {properties: {delta.enableTypeWidening: true}}",
        "table.properties.delta.enableTypeWidening: this sink does not create tables with type ",
    ),
    (
        "table: {properties: {DELTA.enableIcebergCompatV2: true}}",
        "table.properties.DELTA.enableIcebergCompatV2: this sink does not create tables with ",
    ),
    (
        "table: {properties: {delta.constraints.positive: 'a > 0'}}",
        "table.properties.delta.constraints.positive: refused: this sink cannot evaluate ",
    ),
    (
        "table: {properties: {delta.feature.rowTracking: supported}}",
        "table.properties.delta.feature.rowTracking: refused: the sink chooses the table's ",
    ),
    (
        "table: {properties: {delta.minWriterVersion: 7}}",
        "table.properties.delta.minWriterVersion: refused: the sink chooses the protocol ",
    ),
    (
        "table: {properties: {delta-sink.logStore: dynamodb}}",
        "table.properties.delta-sink.logStore: refused: the sink keeps properties of its own ",
    ),
    (
        "table: {properties: {delta.checkpointPolicy: v2}}",
        "table.properties.delta.checkpointPolicy: expected classic: ",
    ),
    (
        "table: {properties: {delta.logRetentionDuration: interval 23 hours}}",
        "table.properties.delta.logRetentionDuration: expected 24 hours or more: ",
    ),
    (
        "table: {properties: {delta.logRetentionDuration: 7 days}}",
        "table.properties.delta.logRetentionDuration: expected an interval of weeks to ",
    ),
    (
        "table: {properties: {delta.deletedFileRetentionDuration: interval 1 month}}",
        "table.properties.delta.deletedFileRetentionDuration: expected an interval of weeks to ",
    ),
    (
        "table: {log_store: dynamodb}",
        "table.log_store.type: dynamodb is not in this version; expected conditional_put",
    ),
    (
        "table: {log_store: {table_name: delta_log}}",
        "table.log_store.table_name: only for dynamodb, which is not chosen here",
    ),
    (
        "table: {storage: {access_key_id: a}}",
        "table.storage.secret_access_key: missing; access_key_id is of no use without it",
    ),
    (
        "table: {storage: {secret_access_key: a}}",
        "table.storage.access_key_id: missing; secret_access_key is of no use without it",
    ),
    (
        "table: {storage: {session_token: a}}",
        "table.storage.access_key_id: missing; session_token is of no use without it",
    ),
    (
        "table: {storage: {endpoint_url: 'http://minio:9000', allow_http: false}}",
        "table.storage.endpoint_url: expected https, because allow_http is false",
    ),
    (
        "memory: {bytes_max: 256MiB}\nflush: {bytes_max: 200MiB}",
        "flush.bytes_max: expected at most half of memory.bytes_max, which is 256MiB, got 200MiB",
    ),
    (
        "memory: {bytes_max: 256MiB}\nvalue: {record_bytes_max: 64MiB}",
        "value.record_bytes_max: expected at most an eighth of memory.bytes_max, which is 256MiB, ",
    ),
    (
        "locks: {store: dynamodb}",
        "locks.table_name: missing; locks.store 'dynamodb' needs the name of its table",
    ),
    (
        "locks: {region: us-east-1}",
        "locks.region: only for dynamodb, which is not chosen here",
    ),
    (
        "registry: {url: 'http://registry:8081'}",
        "registry.url: expected https, because the host is not local; or say insecure: true",
    ),
    (
        "registry: {url: 'https://r', basic_auth: 'a:b', bearer_token: c}",
        "registry.bearer_token: expected either basic_auth or bearer_token, got both",
    ),
    ("registry: {url: 'https://r', basic_auth: a}", "registry.basic_auth: expected user:password"),
    (
        "control: {topic: a, status_topic: a}",
        "control.status_topic: expected another topic than control.topic",
    ),
    ("control: {signing_keys: {k1: short}}", "control.signing_keys.k1: expected 16 bytes or more"),
    ("control: {topic: orders}", "control.topic: the sink reads 'orders' itself"),
    (
        "control: {status_topic: dlq}\nerrors: {dead_letter_topic: dlq}",
        "control.status_topic: 'dlq' is the topic of the dead letters already",
    ),
    (
        "vacuum: {retention_hours: 24}",
        "vacuum.retention_hours: expected 168 or more, which is vacuum.retention_hours_min, got 24",
    ),
]


@pytest.mark.parametrize(("text", "problem"), RULE_CASES)
def test_rules(text, problem):
    [found] = problems(text)
    assert found.startswith(problem)


def test_no_rule_is_without_a_case():
    """Take each rule out: some case must then pass, or the rule is there for nothing."""
    unused = []
    for rule in rules.RULES:
        others = tuple(r for r in rules.RULES if r is not rule)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(rules, "RULES", others)
            if not any(_passes(text) for text, _ in RULE_CASES):
                unused.append(rule.__name__)
    assert unused == []


def _passes(text: str) -> bool:
    try:
        loaded(text)
    except ConfigError:
        return False
    return True


def test_what_is_allowed_near_the_rules():
    loaded("registry: {url: 'http://localhost:8081'}")
    loaded("registry: {url: 'http://registry:8081', insecure: true}")
    loaded("kafka: {sasl.oauthbearer.token.endpoint.url: 'http://127.0.0.1:9/token'}")
    loaded("kafka: {sasl.oauthbearer.token.endpoint.url: 'https://idp/token'}")
    loaded("vacuum: {retention_hours: 1, retention_hours_min: 0}")
    loaded("memory: {bytes_max: 256MiB}")
    loaded(SCHEMA + "  partition_by: [id, _kafka_topic]")
    loaded("table: {partition_by: [day]}")
    loaded("locks: {store: dynamodb, table_name: locks, region: us-east-1}")


def test_a_rule_says_nothing_about_values_that_are_wrong_themselves():
    found = problems("source: {topics: [1]}\nerrors: {tolerance: all, dead_letter_topic: '?'}")
    assert [problem.partition(":")[0] for problem in found] == [
        "source.topics[0]",
        "errors.dead_letter_topic",
    ]


def test_a_mistake_in_a_rule_is_not_swallowed(monkeypatch):
    monkeypatch.setattr(rules, "RULES", (lambda settings: iter([settings.no_such_group]),))
    with pytest.raises(AttributeError):
        loaded()


def test_memory_that_only_the_worker_knows():
    settings = loaded("flush: {bytes_max: 300MiB}")
    [found] = rules.memory_problems(settings, 512 << 20)
    assert found.startswith("flush.bytes_max: expected at most half of memory.bytes_max, ")
    assert list(rules.memory_problems(settings, 1 << 30)) == []


S3 = "table: {uri: 's3://lake/orders'}\n"


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        ("kafka: {bootstrap.servers: 'localhost:1,kafka:9092'}", "kafka.security.protocol: "),
        (
            "kafka: {bootstrap.servers: 'SSL://kafka:9092', security.protocol: SASL_PLAINTEXT}",
            "kafka.security.protocol: records travel to 'kafka' as plain text; set SSL or SASL_SSL",
        ),
        ("kafka: {bootstrap.servers: '10.0.0.1:9092'}", "kafka.security.protocol: "),
        (
            "kafka: {enable.ssl.certificate.verification: false}",
            "kafka.enable.ssl.certificate.verification: anybody can pose as the broker",
        ),
        (
            "kafka: {ssl.endpoint.identification.algorithm: none}",
            "kafka.ssl.endpoint.identification.algorithm: a broker with any certificate",
        ),
        (S3 + "flush: {interval_ms: 99}", "flush.interval_ms: S3 takes about 15 commits a second"),
        ("table: {storage: {fsync: false}}", "table.storage.fsync: without it a power cut "),
        (
            "table: {uri: 's3://lake/orders', storage: {fsync: false}}",
            "table.storage.fsync: it has no meaning for a table in an object store",
        ),
        (
            "table: {uri: 's3://lake/orders', storage: {endpoint_url: 'http://minio:9000'}}",
            "table.storage.endpoint_url: what is sent to 'minio' travels as plain text",
        ),
        (
            "table: {properties: {delta.logRetentionDuraton: interval 7 days}}",
            (
                "table.properties.delta.logRetentionDuraton: Delta defines no property of this name; "
                "did you mean 'delta.logRetentionDuration'?"
            ),
        ),
    ],
)
def test_warnings(text, warning):
    [found] = loaded(text).warnings()
    assert found.startswith(warning)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "flush: {interval_ms: 1}",
        S3 + "flush: {interval_ms: 100}",
        "kafka: {bootstrap.servers: '[::1]:9092,127.0.0.2:1,PLAINTEXT://localhost:2'}",
        "kafka: {bootstrap.servers: 'kafka:9093', security.protocol: SASL_SSL}",
    ],
)
def test_no_warning(text):
    assert loaded(text).warnings() == []


def test_kafka_properties_are_a_mapping():
    kafka = KafkaProperties({"a": "1"})
    assert (len(kafka), list(kafka), kafka.get("b")) == (1, ["a"], None)
    assert kafka == {"a": "1"}


# --- what it costs -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("interval_ms", "cost"), [(1_000, (86_400, 172_800)), (60_000, (1_440, 2_880))]
)
def test_what_an_interval_costs(interval_ms, cost):
    assert rules.cost_of(loaded(f"flush: {{interval_ms: {interval_ms}}}")) == cost
