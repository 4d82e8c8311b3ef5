"""Loading: YAML, overlays, `--set`, references, and the typed values that come out."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from delta_sink.config import Settings, Source, load, normal_table_uri
from delta_sink.errors import ConfigError
from delta_sink.model import TopicPartition
from delta_sink.start import (
    StartEarliest,
    StartGroup,
    StartLatest,
    StartOffsets,
    StartTimestamp,
)

SMALLEST = """
name: orders
kafka: {bootstrap.servers: 'localhost:9092'}
source: {topics: [orders]}
value: {format: json}
table: {uri: /tmp/orders}
"""
FILES = {
    "/run/secrets/key": "file-secret\n",
    "/run/secrets/windows": "file-secret\r\n",
    "/run/secrets/lines": "one\ntwo\n\n",
    "/mnt/creds/password": "dir-secret",
}


def read_file(path: str) -> str:
    if path == "/run/secrets/latin1":
        b"\xff".decode()
    if path not in FILES:
        raise FileNotFoundError(2, "No such file or directory")
    return FILES[path]


def loaded(*texts: str, sets: list[str] | None = None, **env: str) -> Settings:
    sources = [Source(f"{i}.yaml", text) for i, text in enumerate((SMALLEST, *texts))]
    return load(sources, sets or [], env=env, read_file=read_file)


def problems(*texts: str, sets: list[str] | None = None, **env: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        loaded(*texts, sets=sets, **env)
    return list(caught.value.problems)


# --- values ------------------------------------------------------------------------------------


def test_the_smallest_file_gives_the_defaults_of_the_design():
    settings = loaded()
    assert settings.consumer_group == "orders"
    assert (settings.compactor_group, settings.vacuum_group) == (
        "orders.compactor",
        "orders.vacuum",
    )
    assert dict(settings.kafka) == {"bootstrap.servers": "localhost:9092"}
    assert settings.source.start == StartEarliest()
    assert settings.source.topic_ids == "required"
    assert settings.source.on_offset_gap == "fail"
    assert settings.value.unknown_fields == "ignore"
    assert settings.value.tombstones == "skip"
    assert (settings.value.binary, settings.value.timestamp_format) == ("base64", "iso8601")
    assert (settings.value.record_bytes_max, settings.value.nesting_max) == (8 << 20, 64)
    assert settings.table.log_store.type == "conditional_put"
    assert settings.table.schema is None
    assert settings.table.columns is None
    assert settings.table.metadata_columns == ("topic", "partition", "offset", "timestamp")
    assert settings.table.parquet.compression == "zstd"
    assert settings.table.parquet.dictionary == "auto"
    assert settings.table.storage.fsync is True
    assert settings.table.storage.readback is False
    assert settings.table.creation_properties == {
        "delta.logRetentionDuration": "interval 7 days",
        "delta.deletedFileRetentionDuration": "interval 7 days",
    }
    flush = settings.flush
    assert (flush.interval_ms, flush.rows_max, flush.bytes_max) == (1000, 500_000, 64 << 20)
    assert settings.memory.bytes_max == "auto"
    assert (settings.errors.tolerance, settings.errors.dead_letter_topic) == ("none", None)
    assert (settings.locks.store, settings.locks.path) == ("sqlite", "locks.db")
    assert settings.shutdown.grace_ms == 25_000
    assert (settings.logs.format, settings.logs.level) == ("human", "info")
    assert settings.registry is None
    assert settings.control is None
    assert settings.http is None
    assert settings.vacuum.retention_hours_min == 168
    assert settings.compaction.target_file_bytes == 128 << 20


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("earliest", StartEarliest()),
        ("latest", StartLatest()),
        ("{timestamp: 2026-11-01T00:00:00Z}", StartTimestamp(1_793_491_200_000)),
        ("{timestamp: '2026-11-01T02:00:00.0015+02:00'}", StartTimestamp(1_793_491_200_001)),
        ("{timestamp: 2026-11-01}", StartTimestamp(1_793_491_200_000)),
        ("{group: connect-orders}", StartGroup("connect-orders")),
        (
            "{offsets: {orders: {0: 1200, '3': 0}}}",
            StartOffsets({TopicPartition("orders", 0): 1200, TopicPartition("orders", 3): 0}),
        ),
    ],
)
def test_every_way_to_start(text, start):
    assert loaded(f"source: {{start: {text}}}").source.start == start


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("1048576", 1 << 20),
        ("64MiB", 64 << 20),
        ("64KiB", 64 << 10),
        ("1 GiB", 1 << 30),
        ("10MB", 10_000_000),
        ("2000B", 2000),
        ("'4096'", 4096),
        ("'${BYTES}'", 3 << 20),
    ],
)
def test_sizes(text, size_bytes):
    assert loaded(f"flush: {{bytes_max: {text}}}", BYTES="3MiB").flush.bytes_max == size_bytes


def test_kafka_values_become_text():
    settings = loaded("kafka: {a.flag: true, a.number: 10, a.ratio: 0.5, a.word: no, a.null: null}")
    assert dict(settings.kafka) == {
        "bootstrap.servers": "localhost:9092",
        "a.flag": "true",
        "a.number": "10",
        "a.ratio": "0.5",
        "a.word": "no",
    }


def test_kafka_keys_that_stay_the_users():
    settings = loaded(
        "kafka: {partition.assignment.strategy: range, isolation.level: read_committed, "
        "group.instance.id: a, client.id: b, ssl.ca.location: /ca.pem}"
    )
    assert settings.kafka["partition.assignment.strategy"] == "range"
    assert loaded("kafka: {group.protocol: consumer}").kafka["group.protocol"] == "consumer"


def test_log_store_is_a_word_or_a_mapping():
    word = loaded("table: {log_store: conditional_put}")
    mapping = loaded("table: {log_store: {type: conditional_put}}")
    assert word == mapping


@pytest.mark.parametrize(
    ("text", "dictionary"),
    [("auto", "auto"), ("true", True), ("false", False), ("[a, b]", ("a", "b"))],
)
def test_dictionary(text, dictionary):
    settings = loaded(f"table: {{parquet: {{dictionary: {text}}}}}")
    assert settings.table.parquet.dictionary == dictionary


def test_columns_are_parsed():
    settings = loaded(
        "table: {schema: [{name: at, type: timestamp}, {name: day, type: date, from: date(at)}]}"
    )
    assert settings.table.columns is not None
    assert [f.name for f in settings.table.columns.fields] == ["at", "day"]
    assert settings.table.columns.derived[0].source == "at"


def test_a_group_with_nothing_in_it_has_its_defaults():
    assert loaded("flush:\nlogs: null") == loaded()


def test_settings_are_values():
    settings = loaded()
    assert settings == loaded()
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.name = "other"  # type: ignore[misc]  # the point of the test


@pytest.mark.parametrize(
    ("uri", "normal"),
    [
        ("s3a://lake/orders/", "s3://lake/orders"),
        ("S3://lake/orders", "s3://lake/orders"),
        ("s3://lake", "s3://lake"),
        ("file:///data/a%20b/", "/data/a b"),
        ("file://localhost/data", "/data"),
        ("/data/orders//", "/data/orders"),
        ("data/orders", "data/orders"),
        ("/", "/"),
    ],
)
def test_normal_table_uri(uri, normal):
    assert normal_table_uri(uri) == normal
    assert normal_table_uri(normal) == normal
    assert loaded(f"table: {{uri: '{uri}'}}").table.uri == normal


def test_topics_that_are_read():
    settings = loaded(sets=["source.topics=null", r"source.topics_regex=orders\.(eu|us)"])
    assert settings.reads_topic("orders.eu")
    assert not settings.reads_topic("orders.eu.dlq")
    assert loaded().reads_topic("orders")
    assert not loaded().reads_topic("orders.eu")


# --- YAML --------------------------------------------------------------------------------------


def test_yaml_syntax_errors_name_file_and_line_and_all_files_are_read():
    found = problems("flush:\n  a: [1,\nname: x", "b: {c: 1", "- a list")
    assert found[0].startswith("1.yaml:3: not valid YAML: ")
    assert found[1].startswith("2.yaml:1: not valid YAML: ")
    assert found[2] == "3.yaml: expected a mapping at the top, got a list"


def test_duplicate_keys_are_problems_and_merge_keys_are_not():
    found = problems("flush:\n  rows_max: 1\n  interval_ms: 5\n  rows_max: 2\nlogs: {}\nlogs: {}")
    assert found == [
        "1.yaml:4: the key 'rows_max' stands twice in one mapping",
        "1.yaml:6: the key 'logs' stands twice in one mapping",
    ]
    merged = "flush: &f {rows_max: 7}\nlogs: {level: debug}\nhttp: {<<: {port: 1}, port: 2}"
    assert loaded(merged).flush.rows_max == 7
    assert loaded(merged).http.port == 2


def test_yaml_1_2_scalars():
    settings = loaded("source: {topics: [no, on, 2026-11-01, 0x]}\nhttp: {port: 0010}")
    assert settings.source.topics == ("no", "on", "2026-11-01", "0x")
    assert settings.http.port == 10


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("a: " + "[" * 3000 + "]" * 3000, "nested too deep"),
        ("a: 1\n---\nb: 2", "expected a single document"),
        ("a: \x00", "not valid YAML"),
        ("? [1, 2]\n: x", "unhashable"),
    ],
)
def test_hostile_yaml(text, problem):
    [found] = problems(text)
    assert found.startswith("1.yaml")
    assert problem in found


def test_aliases_do_not_multiply_without_end():
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
    )
    assert problems(bomb)[0].startswith("the configuration: more than 64 levels or 100000 values")
    assert problems("a: &a [*a]")[0].startswith("the configuration: more than 64 levels")


# --- overlays and --set ------------------------------------------------------------------------


def test_overlays_merge_mappings_and_replace_the_rest():
    settings = loaded(
        "source: {topics: [a, b]}\nkafka: {client.id: x}\nflush: {rows_max: 1, interval_ms: 2}",
        "source: {topics: [c]}\nflush: {rows_max: 3}\nkafka: {client.id: null}",
    )
    assert settings.source.topics == ("c",)
    assert (settings.flush.rows_max, settings.flush.interval_ms) == (3, 2)
    assert dict(settings.kafka) == {"bootstrap.servers": "localhost:9092"}


def test_set_lays_values_over_all():
    settings = loaded(
        sets=[
            "flush.interval_ms=20",
            "kafka.bootstrap.servers=a:1,b:2",
            "kafka={client.id: x}",
            "table.properties.delta.targetFileSize=1gb",
            "source.topics.1=extra.topic",
            "source.start.offsets.extra.topic.0=7",
            "logs={level: debug}",
            "table.comment=a=b",
            "http.port=${PORT}",
            "flush.interval_ms=30",
        ],
        PORT="9000",
    )
    assert settings.flush.interval_ms == 30
    assert dict(settings.kafka) == {"bootstrap.servers": "a:1,b:2", "client.id": "x"}
    assert settings.table.properties == {"delta.targetFileSize": "1gb"}
    assert settings.source.topics == ("orders", "extra.topic")
    assert settings.source.start == StartOffsets({TopicPartition("extra.topic", 0): 7})
    assert settings.logs.level == "debug"
    assert settings.table.comment == "a=b"
    assert settings.http.port == 9000


def test_set_replaces_an_offset_that_the_file_wrote_as_a_number():
    file = "source: {start: {offsets: {orders: {0: 1, 1: 2}}}}"
    settings = loaded(file, sets=["source.start.offsets.orders.0=9"])
    offsets = settings.source.start.offsets
    assert {tp.partition: offset for tp, offset in offsets.items()} == {0: 9, 1: 2}


@pytest.mark.parametrize(
    ("assignment", "problem"),
    [
        ("flush.interval_ms", "--set (number 1): expected path=value"),
        ("=5", "--set (number 1): expected path=value"),
        ("source.topics.7=x", "--set source.topics.7: expected a list index from 0 to 1, got '7'"),
        ("logs.level=[", "--set logs.level: the value is not valid YAML; put it in quotes"),
        ("logs=human", "logs: expected a mapping, got text"),
        ("flush.intervall_ms=1", "flush.intervall_ms: unknown key; did you mean 'interval_ms'?"),
    ],
)
def test_set_problems(assignment, problem):
    assert problems(sets=[assignment]) == [problem]


SECRET_ASSIGNMENTS = [
    "kafka.sasl.password=%s",
    "kafka={sasl.password: %s}",
    "kafka.ssl.key.password=%s",
    "kafka.ssl.key.pem=%s",
    "kafka.ssl.keystore.password=%s",
    "kafka.sasl.oauthbearer.client.secret=%s",
    "kafka.sasl.oauthbearer.config=%s",
    "table.storage.secret_access_key=%s",
    "table.storage.session_token=%s",
    "table.storage={secret_access_key: %s}",
    "table={storage: {secret_access_key: %s}}",
    "registry.basic_auth=%s",
    "control.signing_keys.k1=%s",
    "control={signing_keys: {k1: %s}}",
]


@pytest.mark.parametrize("assignment", SECRET_ASSIGNMENTS)
@pytest.mark.parametrize("value", ["hunter2", "${X:-hunter2}", "hunter2${X}", "'$${hunter2}'"])
def test_secrets_in_the_command_line_are_refused_and_not_repeated(assignment, value):
    written = value if "{" not in assignment or "'" in value else f"'{value}'"
    found = problems(sets=[assignment % written], X="x")
    assert any("a secret on the command line can be read by everybody" in p for p in found)
    assert "hunter2" not in "".join(found)


def test_secrets_in_the_command_line_may_be_references():
    settings = loaded(
        sets=["kafka.sasl.password=${P}", "kafka.ssl.key.pem=${file:/run/secrets/key}"], P="pw"
    )
    assert settings.kafka["sasl.password"] == "pw"
    assert settings.kafka["ssl.key.pem"] == "file-secret"


# --- references --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("${NAME}", "v"),
        ("${env:NAME}", "v"),
        ("a-${NAME}-${env:NAME}", "a-v-v"),
        ("${NONE:-fallback}", "fallback"),
        ("${env:NONE:-a:-b}", "a:-b"),
        ("${NAME:-fallback}", "v"),
        ("${EMPTY:-fallback}", "fallback"),
        ("x${EMPTY}", "x"),
        ("${NONE:-}x", "x"),
        ("${file:/run/secrets/key}", "file-secret"),
        ("${file:/run/secrets/windows}", "file-secret"),
        ("${file:/run/secrets/lines}", "one\ntwo\n"),
        ("${dir:/mnt/creds:password}", "dir-secret"),
        ("$${NAME}", "${NAME}"),
        ("$$${NAME}", "$v"),
        ("pa$$word$", "pa$$word$"),
        ("orders.(eu|us)$", "orders.(eu|us)$"),
        ("{NAME} $NAME", "{NAME} $NAME"),
        ("${NESTED}", "${NAME}"),
    ],
)
def test_references(written, value):
    env = {"NAME": "v", "EMPTY": "", "NESTED": "${NAME}"}
    assert loaded(f"kafka: {{client.id: '{written}'}}", **env).kafka["client.id"] == value


def test_references_become_numbers_and_flags_where_those_are_wanted():
    text = "http: {port: '${PORT:-8081}'}\ntable: {storage: {fsync: '${FSYNC}'}}\nlogs: {level: '${L}'}"
    settings = loaded(text, FSYNC="false", L="debug")
    assert settings.http.port == 8081
    assert settings.table.storage.fsync is False
    assert settings.logs.level == "debug"


@pytest.mark.parametrize(
    ("written", "sentence"),
    [
        ("${NONE}", "the environment variable 'NONE' is not set"),
        ("${env:NONE}", "the environment variable 'NONE' is not set"),
        ("${file:/absent}", "cannot read '/absent': No such file or directory"),
        ("${dir:/mnt/creds:user}", "cannot read '/mnt/creds/user': No such file or directory"),
        ("${file:/run/secrets/latin1}", "cannot read '/run/secrets/latin1': it is not UTF-8 text"),
        ("${vault:secret/x}", "expected a reference like ${NAME}"),
        ("${dir:/mnt/creds:..}", "expected a reference like ${NAME}"),
        ("${}", "expected a reference like ${NAME}"),
        ("${1X}", "expected a reference like ${NAME}"),
        ("${file:}", "expected a reference like ${NAME}"),
        ("${NAME", "a reference has no end or holds another one"),
        ("${A:-${B}}", "a reference has no end or holds another one"),
    ],
)
def test_references_that_lead_nowhere(written, sentence):
    [found] = problems(f"table: {{comment: '{written}'}}")
    assert found.startswith(f"table.comment: {sentence}")


@given(st.text(alphabet="$ab:-", max_size=20))
def test_text_without_a_brace_is_never_touched(text):
    assert loaded(f"kafka: {{client.id: 'x{text}'}}").kafka["client.id"] == f"x{text}"


@given(st.text(alphabet="${}ab:-", max_size=20))
def test_escaping_every_dollar_before_a_brace_gives_the_text_back(text):
    escaped = ""
    for i, character in enumerate(text):
        run_end = next((j for j in range(i, len(text)) if text[j] != "$"), len(text))
        before_brace = run_end < len(text) and text[run_end] == "{"
        escaped += "$$" if character == "$" and before_brace else character
    assert loaded(f"kafka: {{client.id: 'x{escaped}'}}").kafka["client.id"] == f"x{text}"


# --- secrets -----------------------------------------------------------------------------------

SECRETS = """
kafka:
  sasl.password: hunter2
  ssl.key.pem: hunter2
  ssl.key.password: hunter2
  ssl.keystore.password: hunter2
  sasl.oauthbearer.client.secret: hunter2
  sasl.oauthbearer.config: principal=hunter2
  sasl.oauthbearer.assertion.private.key.passphrase: hunter2
  client.id: '${SECRET}'
registry: {url: 'https://registry', basic_auth: 'user:hunter2'}
control: {signing_keys: {k1: hunter2hunter2hunter2}}
table:
  properties: {owner: '${SECRET}'}
  storage: {access_key_id: a, secret_access_key: '${SECRET}', session_token: hunter2}
"""


def test_no_repr_shows_a_secret_and_the_values_are_there():
    settings = loaded(SECRETS, SECRET="hunter2")
    for shown in (repr(settings), str(settings), repr(settings.kafka), f"{settings.table}"):
        assert "hunter2" not in shown
    assert settings.kafka["sasl.password"] == "hunter2"
    assert settings.kafka["client.id"] == "hunter2"
    assert dict(settings.kafka.items())["ssl.key.pem"] == "hunter2"
    assert settings.table.storage.secret_access_key.get_secret_value() == "hunter2"
    assert settings.table.properties["owner"] == "hunter2"
    assert settings.control.signing_keys["k1"].get_secret_value() == "hunter2" * 3
    assert "localhost:9092" in repr(settings.kafka)


@pytest.mark.parametrize(
    "text",
    [
        "kafka: hunter2",
        "kafka: {sasl.password: [hunter2]}",
        "registry: hunter2",
        "registry: {url: 'https://user:hunter2@registry'}",
        "registry: {url: 'https://registry', basic_auth: hunter2}",
        "registry: {url: 'https://registry', basic_auth: [hunter2]}",
        "control: {signing_keys: hunter2}",
        "control: {signing_keys: {k1: hunter2}}",
        "control: {signing_keys: {k1: [hunter2]}}",
        "table: {storage: {secret_access_key: {a: hunter2}}}",
        "table: {storage: {secret_acces_key: hunter2}}",
        "table: {storage: {endpoint_url: 'http://user:hunter2@minio'}}",
        "table: {uri: 's3://key:hunter2@bucket/x'}",
        "table: {uri: '${SECRET}://x'}",
        "table: {schema: [{name: '${SECRET}=', type: string}]}",
        "flush: {interval_ms: '${SECRET}', bytes_max: '${SECRET}'}",
        "logs: {level: '${SECRET}', format: '${SECRET}'}",
        "value: {record_bytes_max: '${SECRET}'}",
        "source: {topics: '${SECRET}', start: '${SECRET}'}",
        "source: {start: {timestamp: '${SECRET}'}}",
        "errors: {dead_letter_topic: '${SECRET} x', ratio_max: '${SECRET}'}",
        "compaction: {cron: '${SECRET}'}",
        "http: {port: '${SECRET}'}",
        "kafka: {sasl.password: *hunter2}",
        "kafka: {sasl.password: !hunter2 x}",
        "sasl.password: hunter2",
        "kafka: {sasl.password: '${hunter2'}",
    ],
)
def test_no_problem_shows_a_secret(text):
    found = problems(text, SECRET="hunter2")
    assert found
    assert "hunter2" not in "\n".join(found)


def test_all_problems_at_once():
    found = problems(
        "name: a b\nnme: x\nflush: {intervall_ms: 3, rows_max: 0}\nkafka: {group.id: x, a: [1]}",
        "errors: {tolerance: all}\nvalue: {format: avro, nesting_max: many}\nvacuum: 7",
        sets=["kafka.sasl.password=x", "table.comment=${GONE}"],
    )
    assert sorted(problem.partition(":")[0] for problem in found) == sorted(
        {
            "name",
            "nme",
            "flush.intervall_ms",
            "flush.rows_max",
            "kafka.group.id",
            "kafka.a",
            "kafka.sasl.password",
            "errors.dead_letter_topic",
            "value.format",
            "value.nesting_max",
            "vacuum",
            "table.comment",
        }
    )


def test_nothing_at_all_names_every_required_key():
    with pytest.raises(ConfigError) as caught:
        load([Source("empty.yaml", "")], [], env={}, read_file=read_file)
    assert [problem.partition(":")[0] for problem in caught.value.problems] == [
        "name",
        "kafka",
        "source",
        "value",
        "table",
    ]
    assert all(": missing; " in problem for problem in caught.value.problems)
