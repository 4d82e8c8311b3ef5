"""The commands as a user types them: what they print, what they exit with, never a traceback."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from pathlib import Path

import pyarrow as pa
import pytest
import yaml
from deltalake import DeltaTable, write_deltalake

from delta_sink.adapters.embedded import EmbeddedBroker
from delta_sink.decode.native import is_compiled
from tests.process.sinks import (
    SCHEMA,
    Sink,
    events_of,
    produce,
    sentences_of,
    values,
    words_of,
    write_config,
)

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def broker():
    with EmbeddedBroker({"plain": 1, "other": 1}) as broker:
        yield broker


def overlay(folder, name, config):
    path = folder / name
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return str(path)


def only_sentence(done):
    """Return the one sentence with which a command failed; there must be no other and no trace."""
    words = sentences_of(done.stderr)
    assert len(words) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return words[0]


# --- check-config -----------------------------------------------------------------------------


def test_a_right_configuration_is_ok(tmp_path, broker):
    with Sink(tmp_path, write_config(tmp_path, broker.bootstrap_servers)) as sink:
        human = sink.run("check-config")
        machine = sink.run("check-config", "--json")
    assert (human.returncode, human.stdout) == (0, "ok\n")
    assert "cost: a writer that is never idle commits 864,000 times a day" in human.stderr
    assert machine.returncode == 0
    answer = json.loads(machine.stdout)
    assert answer["ok"] is True
    assert answer["cost"] == {"commits_per_day": 864_000, "puts_per_day_min": 1_728_000}
    assert answer["json_decoder"] == ("compiled" if is_compiled() else "pyarrow")


def test_every_problem_is_told_at_once_with_its_path(tmp_path, broker):
    config = write_config(
        tmp_path,
        broker.bootstrap_servers,
        flsh={"interval_ms": 5},
        kafka={"group.id": "mine"},
        flush={"interval_ms": "soon"},
        errors={"tolerance": "all"},
    )
    with Sink(tmp_path, config) as sink:
        human = sink.run("check-config")
        machine = sink.run("check-config", "--json")
        writer = sink.run("run", "writer")
    for done in (human, writer):
        assert done.returncode == 2
        assert done.stdout == ""
        lines = words_of(done.stderr)
        assert all(line.startswith("configuration: ") for line in lines)
        paths = {line.split(": ")[1] for line in lines}
        assert paths == {"flsh", "kafka.group.id", "flush.interval_ms", "errors.dead_letter_topic"}
        assert [line for line in lines if "flsh" in line and "'flush'" in line], lines
    assert machine.returncode == 2
    answer = json.loads(machine.stdout)
    assert answer["ok"] is False
    assert len(answer["problems"]) == 4


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["check-config"], "--config"),
        (["no-such-command"], "no-such-command"),
        (["run", "writer", "-c", "/nowhere/sink.yaml"], "cannot be read"),
        (["check-config", "-c", "/nowhere/sink.yaml", "--nonsense"], "--nonsense"),
    ],
)
def test_wrong_usage_exits_with_2(tmp_path, arguments, wanted):
    command = [sys.executable, "-m", "delta_sink.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert wanted in done.stderr
    assert "Traceback" not in done.stderr


def test_every_command_explains_itself(tmp_path):
    console_script = str(Path(sys.executable).parent / "delta-sink")
    for arguments, wanted in [
        ([], ["audit", "check-config", "demo", "init", "run"]),
        (["run", "writer"], ["--until-end", "--config", "--set", "--json"]),
        (["init"], ["--move", "lock table"]),
        (["audit"], ["--deep", "exactly once"]),
        (["check-config"], ["--connect"]),
        (["demo"], ["--records", "--keep", "--json"]),
    ]:
        command = [console_script, *arguments, "--help"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
        assert done.returncode == 0
        for word in wanted:
            assert word in done.stdout, (arguments, word)


# --- check-config --connect -------------------------------------------------------------------


def connect(sink, *arguments):
    done = sink.run("check-config", "--connect", "--json", *arguments)
    assert words_of(done.stderr) == []
    answer = json.loads(done.stdout)
    found = {finding["what"]: finding for finding in answer["connect"]}
    assert list(found) == ["brokers", "topics", "store", "table", "locks"]
    assert done.returncode == (0 if answer["ok"] else 1)
    return {what: finding["sentence"] for what, finding in found.items() if not finding["ok"]}


def test_connect_proves_everything(tmp_path, broker):
    config = write_config(tmp_path, broker.bootstrap_servers, source={"topics": ["plain"]})
    with Sink(tmp_path, config) as sink:
        assert connect(sink) == {}
        assert sink.run("init").returncode == 0
        assert connect(sink) == {}
        human = sink.run("check-config", "--connect")
    assert human.stdout.splitlines()[-1] == "ok"
    assert "at version 0" in human.stdout


def test_connect_names_each_thing_that_fails(tmp_path, broker):
    config = write_config(tmp_path, broker.bootstrap_servers, source={"topics": ["plain"]})
    (tmp_path / "a-file").write_text("")
    with Sink(tmp_path, config) as sink:
        assert sink.run("init").returncode == 0
        failed = connect(sink, "--set", "source.topics=[nowhere]")
        assert list(failed) == ["topics"]
        assert "'nowhere' does not exist" in failed["topics"]
        wider = [*SCHEMA, {"name": "extra", "type": "double"}]
        failed = connect(sink, "--set", f"table.schema={json.dumps(wider)}")
        assert list(failed) == ["table"]
        assert "extra" in failed["table"]
        failed = connect(sink, "--set", f"table.uri={tmp_path}/a-file/table")
        assert set(failed) == {"store", "table"} or set(failed) == {"store"}
        assert "a part of the path is a file" in failed["store"]
        failed = connect(sink, "--set", f"locks.path={tmp_path}/a-file/locks.db")
        assert list(failed) == ["locks"]


@pytest.mark.parametrize("topic_ids", ["none", "required"])
def test_connect_to_a_broker_that_is_down_tries_the_rest(tmp_path, topic_ids):
    source = {"topics": ["plain"], "topic_ids": topic_ids}
    config = write_config(tmp_path, "127.0.0.1:1", source=source)
    with Sink(tmp_path, config) as sink:
        failed = connect(sink)
    assert set(failed) == {"brokers", "topics"}
    assert "no answer" in failed["brokers"]


# --- init -------------------------------------------------------------------------------------


def test_init_is_idempotent_and_races_with_a_writer(tmp_path, broker):
    broker.create_topic("raced", 2)
    produce(broker.bootstrap_servers, "raced", values(range(50)), partitions=2)
    config = write_config(tmp_path, broker.bootstrap_servers, source={"topics": ["raced"]})
    with Sink(tmp_path, config) as sink:
        writer = sink.start("--until-end")
        racers = [threading.Thread(target=sink.run, args=("init",)) for _ in range(2)]
        for racer in racers:
            racer.start()
        for racer in racers:
            racer.join()
        assert writer.process.wait(60) == 0, writer.words()
        versions = len(sink.entries())
        again = sink.run("init", "--json")
        assert again.returncode == 0
        assert json.loads(again.stdout) == {
            "ok": True,
            "table_version": versions - 1,
            "topics_created": [],
        }
        assert len(sink.entries()) == versions
        assert DeltaTable(str(tmp_path / "table")).to_pyarrow_table().num_rows == 50
        assert sum(entry.metadata is not None for entry in sink.entries()) == 1


@pytest.mark.parametrize(
    ("only", "made"), [("table", {"table", "locks.db"}), ("locks", {"locks.db"}), ("topics", set())]
)
def test_init_makes_only_what_it_is_asked_for(tmp_path, broker, only, made):
    config = write_config(tmp_path, broker.bootstrap_servers)
    sink = Sink(tmp_path, config)
    assert sink.run("init", "--only", only).returncode == 0
    there = {path.name for path in tmp_path.iterdir()} - {"sink.yaml"}
    assert {name for name in there if not name.startswith("locks.db-")} == made
    assert sink.run("init", "--only", "everything").returncode == 2


def test_a_table_of_deltalake_is_taken_over_by_init(tmp_path, broker):
    broker.create_topic("adopted", 1)
    produce(broker.bootstrap_servers, "adopted", values(range(10)))
    table = tmp_path / "table"
    theirs = pa.table({"id": pa.array([100, 101], pa.int64()), "payload": ["a", "b"]})
    theirs = theirs.cast(pa.schema([("id", pa.int64(), False), ("payload", pa.string(), False)]))
    write_deltalake(str(table), theirs)
    config = write_config(
        tmp_path,
        broker.bootstrap_servers,
        source={"topics": ["adopted"]},
        table={"metadata_columns": []},
    )
    with Sink(tmp_path, config) as sink:
        refused = sink.run("run", "writer", "--until-end")
        assert refused.returncode == 3
        assert "run `delta-sink init` once" in only_sentence(refused)
        assert sink.run("init").returncode == 0
        found = DeltaTable(str(table))
        assert found.metadata().configuration["delta-sink.logStore"] == "conditional_put"
        version = found.version()
        assert sink.run("init").returncode == 0
        assert DeltaTable(str(table)).version() == version
        sink.drain()
        rows = DeltaTable(str(table)).to_pyarrow_table().column("id").to_pylist()
        assert sorted(rows) == [*range(10), 100, 101]
        write_deltalake(str(table), theirs, mode="append")
        assert DeltaTable(str(table)).to_pyarrow_table().num_rows == 14
        audit = sink.run("audit", "--json")
        assert audit.returncode == 0, audit.stdout


def test_init_needs_a_schema_or_a_table(tmp_path, broker):
    config = write_config(tmp_path, broker.bootstrap_servers, table={"schema": None})
    with Sink(tmp_path, config) as sink:
        done = sink.run("init")
    assert done.returncode == 3
    assert "no table.schema to create it from" in only_sentence(done)


# --- audit ------------------------------------------------------------------------------------


def test_the_audit_names_what_is_wrong(tmp_path, broker):
    broker.create_topic("audited", 2)
    produce(broker.bootstrap_servers, "audited", values(range(40)), partitions=2)
    config = write_config(tmp_path, broker.bootstrap_servers, source={"topics": ["audited"]})
    with Sink(tmp_path, config) as sink:
        sink.drain()
        good = sink.run("audit", "--deep")
        assert good.returncode == 0, good.stdout
        assert "exactly once" in good.stdout
        machine = sink.audit()
        assert {"ok", "table_version", "partitions", "violations"} <= set(machine)
        assert {
            "topic",
            "partition",
            "offset_first",
            "offset_next",
            "records",
            "rows",
            "dead_letters",
            "skipped",
        } <= set(machine["partitions"][0])
        assert [part["rows"] for part in machine["partitions"]] == [20, 20]
        # Somebody appends rows that are there already: only the rows themselves show it.
        table = str(tmp_path / "table")
        rows = DeltaTable(table).to_pyarrow_table()
        write_deltalake(table, rows.slice(0, 1), mode="append")
        twice = sink.audit()
        assert not twice["ok"]
        place = rows.slice(0, 1).to_pylist()[0]
        wanted = f"audited/{place['_kafka_partition']}"
        assert any(
            wanted in str(v) and str(place["_kafka_offset"]) in str(v) for v in twice["violations"]
        )


def test_the_audit_finds_a_broken_chain(tmp_path, broker):
    broker.create_topic("chained", 1)
    config = write_config(tmp_path, broker.bootstrap_servers, source={"topics": ["chained"]})
    with Sink(tmp_path, config) as sink:
        for first in (0, 10, 20):
            produce(broker.bootstrap_servers, "chained", values(range(first, first + 10)))
            sink.drain()
        victim = sorted((tmp_path / "table" / "_delta_log").glob("*.json"))[-2]
        text = victim.read_text()
        changed = re.sub(r'\\"offset_first\\":10', r'\\"offset_first\\":12', text)
        assert changed != text
        victim.write_text(changed)
        done = sink.run("audit")
    assert done.returncode == 1
    assert "chained/0" in done.stdout
    assert "Traceback" not in done.stderr


def test_the_audit_of_no_table_is_one_sentence(tmp_path, broker):
    with Sink(tmp_path, write_config(tmp_path, broker.bootstrap_servers)) as sink:
        done = sink.run("audit")
    assert done.returncode in (1, 3)
    assert len([*words_of(done.stderr), *done.stdout.splitlines()]) == 1, done


# --- the end of a process ---------------------------------------------------------------------


def test_an_error_that_nobody_thought_of_is_one_sentence(tmp_path, broker):
    """A part that raises what no part may raise: the process must still say one sentence."""
    config = write_config(tmp_path, broker.bootstrap_servers, source={"topics": ["plain"]})
    secret = "a value of a record"
    program = (
        "import sys\n"
        "import delta_sink.writer, delta_sink.cli\n"
        "def broken(*_, **__): raise ZeroDivisionError('" + secret + "')\n"
        "delta_sink.writer.settle = broken\n"
        f"sys.argv = ['delta-sink', 'run', 'writer', '-c', {str(config)!r}]\n"
        "delta_sink.cli.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 3
    sentence = only_sentence(done)
    assert "bug" in sentence
    assert "ZeroDivisionError" in sentence
    assert secret not in done.stderr


def test_a_fatal_error_is_one_sentence(tmp_path, broker):
    config = write_config(tmp_path, broker.bootstrap_servers, source={"topics": ["plain"]})
    (tmp_path / "a-file").write_text("")
    with Sink(tmp_path, config) as sink:
        done = sink.run("run", "writer", "--set", f"table.uri={tmp_path}/a-file/table")
    assert done.returncode == 3
    assert "a part of the path is a file" in only_sentence(done)


# --- settings from several places -------------------------------------------------------------


def test_overlays_and_sets_reach_the_worker(tmp_path, broker):
    broker.create_topic("layered", 1)
    produce(broker.bootstrap_servers, "layered", values(range(5)))
    config = write_config(tmp_path, broker.bootstrap_servers, source={"topics": ["nowhere"]})
    second = overlay(tmp_path, "second.yaml", {"source": {"topics": ["layered"]}, "name": "second"})
    third = overlay(tmp_path, "third.yaml", {"table": {"comment": "from ${COMMENT:-nobody}"}})
    first = str(config)
    with Sink(tmp_path, Path(third)) as sink:
        sink.env["COMMENT"] = "the environment"
        done = sink.drain(
            "-c", first, "-c", second, "--set", "table.uri=./elsewhere", "--set", "name=fourth"
        )
        assert events_of(done.stderr, "worker_started")[0]["group"] == "fourth"
        table = DeltaTable(str(tmp_path / "elsewhere"))
        assert table.metadata().description == "from the environment"
        assert table.to_pyarrow_table().num_rows == 5
        as_human = sink.drain(
            "-c",
            first,
            "-c",
            second,
            "--set",
            "logs.format=human",
            "--set",
            "table.uri=./elsewhere",
            "--set",
            "name=fourth",
            "--json",
        )
    assert json.loads(as_human.stdout) == {"ok": True}
    assert "table opened" in as_human.stderr


def test_one_name_stands_for_one_table(tmp_path, broker):
    config = write_config(tmp_path, broker.bootstrap_servers, source={"topics": ["other"]})
    with Sink(tmp_path, config) as sink:
        assert sink.run("init").returncode == 0
        moved = ("--set", f"table.uri={tmp_path}/moved")
        for command in (("run", "writer", "--until-end"), ("init",)):
            refused = sink.run(*command, *moved)
            assert refused.returncode == 3
            sentence = only_sentence(refused)
            assert "events-sink" in sentence
            assert "--move" in sentence
        assert not (tmp_path / "moved" / "_delta_log").exists()
        assert sink.run("init", "--move", *moved).returncode == 0
        assert sink.run("run", "writer", "--until-end", *moved).returncode == 0
        back = sink.run("run", "writer", "--until-end")
        assert back.returncode == 3


# --- the demo ---------------------------------------------------------------------------------


def test_the_demo_ends_with_its_figures(tmp_path):
    command = [sys.executable, "-m", "delta_sink.cli", "demo", "--records", "20000", "--json"]
    command += ["--keep", "kept"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, check=False, timeout=100
    )
    assert done.returncode == 0, done.stderr[-2000:]
    [line] = done.stdout.splitlines()
    figures = json.loads(line)
    assert list(figures) == [
        "ok",
        "records",
        "rows",
        "commits",
        "records_per_s",
        "freshness_p50_ms",
        "freshness_p99_ms",
        "table",
    ]
    assert figures["ok"] is True
    assert figures["records"] == figures["rows"] == 20_000
    assert figures["commits"] > 1
    assert 0 < figures["freshness_p50_ms"] <= figures["freshness_p99_ms"]
    assert DeltaTable(figures["table"]).to_pyarrow_table().num_rows == 20_000
    again = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert again.returncode == 3
    assert "is not empty" in only_sentence(again)
    assert "SIGKILL" in done.stderr
