"""`delta-sink control`: commands through a broker, answered by a responder that speaks as workers do."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Callable

import pytest
import yaml
from confluent_kafka import Consumer, Producer, TopicPartition

from delta_sink.adapters.embedded import EmbeddedBroker
from delta_sink.control import (
    Command,
    Outcome,
    Part,
    Rules,
    encode_outcome,
    outcome_of,
    parse_command,
)
from delta_sink.control_message import Refusal
from tests.process.sinks import SCHEMA, Sink, write_config

# Each command is a process of its own, so that all of them take two minutes.
pytestmark = [pytest.mark.process, pytest.mark.long]

KEY = "0123456789abcdef"
CONTROL = "ops.control"
STATUS = "ops.status"
FIGURES = {"files_removed": 20, "files_added": 1}

Answer = Callable[[Command], list[Outcome]]


class Responder:
    """Reads the control topic from its beginning and publishes what `answer` says; a context."""

    def __init__(self, bootstrap: str, rules: Rules, answer: Answer, partitions: int = 2) -> None:
        self.commands: list[Command] = []
        self.refusals: list[Refusal] = []
        self.keys: list[bytes] = []
        self._rules, self._answer = rules, answer
        settings = {"bootstrap.servers": bootstrap}
        self._producer = Producer(settings)
        reading = {"group.id": "responder", "auto.offset.reset": "earliest"}
        self._consumer = Consumer({**settings, **reading, "fetch.wait.max.ms": 50})
        self._consumer.assign([TopicPartition(CONTROL, n, 0) for n in range(partitions)])
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()
        self._consumer.close()

    def _run(self) -> None:
        while not self._stopped.is_set():
            record = self._consumer.poll(0.1)
            if record is None or record.error():
                continue
            self.keys.append(record.key())
            for outcome in self._answers(record.value()):
                self._producer.produce(STATUS, encode_outcome(outcome), outcome.table.encode())
                self._producer.flush(5)

    def _answers(self, value: bytes) -> list[Outcome]:
        now_ms = int(time.time() * 1000)
        try:
            command = parse_command(value, self._rules, now_ms=now_ms)
        except Refusal as refusal:
            self.refusals.append(refusal)
            if refusal.id is None or refusal.table is None:
                return []
            said = (refusal.id, refusal.table, refusal.command or "", "refused", now_ms, "w1")
            return [Outcome(*said, refusal.message)]
        if command is None:
            return []
        self.commands.append(command)
        return self._answer(command)


def said(command: Command, *states: str, **options) -> list[Outcome]:
    now_ms = int(time.time() * 1000)
    return [outcome_of(command, state, at_ms=now_ms, worker="w1", **options) for state in states]


def done(command: Command) -> list[Outcome]:
    return [
        *said(command, "accepted", "started"),
        *said(command, "progress", message="12 of 20 files"),
        *said(command, "succeeded", message="compacted", result=FIGURES),
    ]


@pytest.fixture
def broker():
    with EmbeddedBroker({CONTROL: 2, STATUS: 1}) as broker:
        yield broker


@pytest.fixture
def sink(tmp_path, broker):
    control = {"topic": CONTROL, "status_topic": STATUS, "signing_keys": {"k1": "${KEY}"}}
    with Sink(tmp_path, write_config(tmp_path, broker.bootstrap_servers, control=control)) as sink:
        sink.env["KEY"] = KEY
        yield sink


@pytest.fixture
def rules(tmp_path):
    return Rules(str(tmp_path / "table"), 168, {"k0": b"another key of ours", "k1": KEY.encode()})


def control(sink: Sink, *arguments: str, code: int = 0) -> str:
    ran = sink.run("control", *arguments)
    assert ran.returncode == code, (ran.returncode, ran.stdout, ran.stderr)
    assert KEY not in ran.stdout + ran.stderr
    return ran.stdout if code != 2 else ran.stderr


def test_a_command_is_sent_signed_and_followed(sink, broker, rules, tmp_path):
    where = "day >= '2026-11-01' and region in ('eu')"
    arguments = ["compact", "--where", where, "--target-file-bytes", "4MiB", "--sort-by", "id"]
    with Responder(broker.bootstrap_servers, rules, done) as responder:
        found = json.loads(control(sink, *arguments, "--sort-by", "payload", "--wait", "--json"))
    assert not responder.refusals
    (command,) = responder.commands
    assert responder.keys == [str(tmp_path / "table").encode()]
    assert command.args.where == where
    assert command.args.target_file_bytes == 4 << 20
    assert command.args.sort_by == ("id", "payload")
    assert command.expires_at_ms - command.issued_at_ms == 3_600_000
    assert "@" in command.issuer
    assert (found["ok"], found["id"], found["state"]) == (True, command.id, "succeeded")
    assert (found["message"], found["result"]) == ("compacted", FIGURES)
    assert [outcome["state"] for outcome in found["outcomes"]] == [
        "accepted",
        "started",
        "progress",
        "succeeded",
    ]


def test_progress_is_printed_for_people_parts_included(sink, broker, rules):
    def answer(command: Command) -> list[Outcome]:
        part = Part(command.id, 0, 2, 17)
        piece = Command(f"{command.id}.0", command.table, command.args, part=part)
        stranger = Command("another", command.table, command.args)
        return [*said(stranger, "failed"), *said(piece, "succeeded"), *done(command)]

    with Responder(broker.bootstrap_servers, rules, answer) as responder:
        text = control(sink, "compact", "--wait")
    lines = text.splitlines()
    assert lines[0] == f"sent compact {responder.commands[0].id} to {CONTROL}"
    assert "succeeded (part 1 of 2) by w1" in lines[1]
    assert "progress by w1: 12 of 20 files" in lines[4]
    assert lines[5].endswith("succeeded by w1: compacted (files_added 1, files_removed 20)")
    assert len(lines) == 6


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["vacuum"], "Vacuum(dry_run=True, retention_hours=None)"),
        (["vacuum", "--execute"], "Vacuum(dry_run=False, retention_hours=None)"),
        (["checkpoint"], "Checkpoint(dry_run=False)"),
        (["cleanup-log", "--dry-run"], "CleanupLog(dry_run=True)"),
        (["pause", "--role", "writer"], "Pause(role='writer')"),
        (["resume", "--role", "maintenance"], "Resume(role='maintenance')"),
        (["compact", "--zorder-by", "id", "--dry-run"], "zorder_by=('id',), dry_run=True)"),
    ],
    ids=str,
)
def test_every_command_says_what_it_should(sink, broker, rules, arguments, wanted):
    with Responder(broker.bootstrap_servers, rules, done) as responder:
        control(sink, *arguments, "--wait", "--timeout", "30")
    assert wanted in repr(responder.commands[0].args)


def test_exit_one_when_it_is_refused_failed_or_nobody_answers(sink, broker, rules):
    with Responder(broker.bootstrap_servers, rules, lambda c: said(c, "failed", message="disk")):
        found = json.loads(control(sink, "checkpoint", "--wait", "--json", code=1))
        assert (found["ok"], found["state"], found["message"]) == (False, "failed", "disk")
        arguments = ["vacuum", "--retention-hours", "1", "--wait"]
        text = control(sink, *arguments, code=1)
        assert "1 is below 168, the lowest" in text
    began = time.monotonic()
    text = control(sink, "checkpoint", "--wait", "--timeout", "2", code=1)
    assert time.monotonic() - began < 20
    assert "no outcome within 2 s; the command stays valid until 20" in text


def test_an_unsigned_command_is_refused_by_a_worker_with_keys(sink, broker, rules):
    path = sink.config
    config = yaml.safe_load(path.read_text())
    del config["control"]["signing_keys"]
    path.write_text(yaml.safe_dump(config))
    with Responder(broker.bootstrap_servers, rules, done) as responder:
        assert "it is not signed" in control(sink, "checkpoint", "--wait", code=1)
    assert [refusal.reason for refusal in responder.refusals] == ["unsigned"]


def test_without_wait_nothing_is_followed_and_the_log_tells_later(sink, broker, rules):
    assert control(sink, "log") == "no commands for this table\n"
    sent = json.loads(control(sink, "checkpoint", "--json"))
    assert sent["ok"]
    assert "no outcome yet" in control(sink, "log")
    producer = Producer({"bootstrap.servers": broker.bootstrap_servers})
    broken = {"v": 1, "id": "broken", "table": rules.table_uri, "command": "explode"}
    foreign = {"v": 1, "id": "foreign", "table": "s3://lake/else", "command": "checkpoint"}
    for value in (
        b"{",
        json.dumps(broken).encode(),
        json.dumps(foreign).encode(),
        b"\xff" * 70_000,
    ):
        producer.produce(CONTROL, value)
    producer.flush(10)
    with Responder(broker.bootstrap_servers, rules, done) as responder:
        control(sink, "compact", "--wait")
        deadline = time.monotonic() + 20
        while len(responder.keys) < 6 and time.monotonic() < deadline:
            time.sleep(0.05)
    found = {each["id"]: each for each in json.loads(control(sink, "log", "--json"))["commands"]}
    assert set(found) == {sent["id"], "broken", responder.commands[-1].id} | {
        command.id for command in responder.commands
    }
    assert found[sent["id"]]["state"] == "succeeded"
    assert found[sent["id"]]["command"]["command"] == "checkpoint"
    assert len(found[sent["id"]]["outcomes"]) == 4
    assert "expected one of compact" in found["broken"]["refusal"]
    text = control(sink, "log", "--last", "2")
    assert len(text.splitlines()) == 2
    assert "compact" in text
    assert "succeeded by w1: compacted" in text


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["compact", "--where", "day =="], "'where': character 6: expected a number"),
        (["compact", "--sort-by", "a", "--zorder-by", "b"], "expected one of them"),
        (["compact", "--target-file-bytes", "big"], "expected bytes or a size"),
        (["pause"], "Missing option '--role'"),
        (["vacuum", "--retention-hours", "-1"], "is not in the range"),
    ],
    ids=str,
)
def test_what_is_wrong_is_said_before_it_is_sent(sink, arguments, sentence):
    assert sentence in control(sink, *arguments, code=2)
    assert control(sink, "log") == "no commands for this table\n"


def test_without_the_group_control_there_are_no_commands(tmp_path, broker):
    with Sink(tmp_path, write_config(tmp_path, broker.bootstrap_servers)) as sink:
        assert "control: commands need this group" in control(sink, "checkpoint", code=2)


def test_brokers_that_are_gone_are_said_to_be(tmp_path):
    group = {"topic": CONTROL, "status_topic": STATUS}
    with Sink(tmp_path, write_config(tmp_path, "127.0.0.1:1", control=group)) as sink:
        ran = sink.run("control", "checkpoint", "--wait")
        assert ran.returncode == 3
        assert "no answer" in ran.stderr


def test_init_makes_the_topics_and_apache_kafka_carries_the_commands(tmp_path, kafka):
    name = uuid.uuid4().hex[:8]
    kafka.create_topic(f"events-{name}", 1)
    config = write_config(
        tmp_path,
        kafka.bootstrap_servers,
        name=f"sink-{name}",
        source={"topics": [f"events-{name}"], "topic_ids": "required"},
        table={"schema": SCHEMA},
        control={"topic": f"control-{name}", "status_topic": f"status-{name}"},
    )
    with Sink(tmp_path, config) as sink:
        ran = sink.run("control", "checkpoint", "--wait")
        assert ran.returncode == 3
        assert "there is no topic" in ran.stderr
        assert "delta-sink init" in ran.stderr
        ran = sink.run("init", "--only", "table", "--only", "locks", "--json")
        assert json.loads(ran.stdout) == {"ok": True, "table_version": 0, "topics_created": []}
        ran = sink.run("init", "--only", "topics", "--json")
        assert ran.returncode == 0, ran.stderr
        created = json.loads(ran.stdout)["topics_created"]
        assert sorted(created) == [f"control-{name}", f"status-{name}"]
        assert kafka.partitions_of(f"control-{name}") == 16
        assert kafka.partitions_of(f"status-{name}") == 1
        assert json.loads(sink.run("init", "--json").stdout)["topics_created"] == []
        found = json.loads(control(sink, "checkpoint", "--json"))
        assert "no outcome within 1 s" in control(
            sink, "vacuum", "--wait", "--timeout", "1", code=1
        )
        listed = json.loads(control(sink, "log", "--json"))["commands"]
        assert [each["command"]["command"] for each in listed] == ["checkpoint", "vacuum"]
        assert listed[0]["id"] == found["id"]
