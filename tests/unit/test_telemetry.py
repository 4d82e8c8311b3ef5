"""The declarations of metrics and events, and the telemetry of one process."""

from __future__ import annotations

import ast
import io
import json
import logging
import re
import threading
import warnings
from pathlib import Path

import pytest

from delta_sink import telemetry as declared
from delta_sink.adapters import logs
from delta_sink.adapters.logs import LogTelemetry
from delta_sink.ports import Telemetry

ROOT = Path(__file__).parents[2]
NOON_MS = 1_795_780_801_234  # 2026-11-27T12:00:01.234Z


class FixedClock:
    def wall_ms(self) -> int:
        return NOON_MS

    def elapsed_ms(self) -> int:
        return 0

    def sleep_ms(self, duration_ms: int) -> None:
        raise AssertionError(duration_ms)


def make(**settings) -> tuple[LogTelemetry, io.StringIO]:
    stream = io.StringIO()
    return LogTelemetry(stream, clock=FixedClock(), sink="orders", **settings), stream


def human(name, level="info", /, **fields) -> str:
    telemetry, stream = make()
    telemetry.event(name, level, **fields)
    return stream.getvalue()


# --- declarations ------------------------------------------------------------------------------


def test_names_follow_prometheus():
    units = {"seconds", "bytes", "records", "total", "partitions", "version", "files"}
    units |= {"info", "state", "up", "held", "ok", "checkpoint"}  # no amounts, or amounts of events
    for metric in declared.METRICS.values():
        assert re.fullmatch(r"delta_sink_[a-z]+(_[a-z]+)*", metric.name), metric
        assert metric.name.rsplit("_", 1)[1] in units, metric
        assert metric.sentence.endswith("."), metric
        assert not {"worker", "table_partition"} & set(metric.tags), metric
        assert "partition" not in metric.tags or "_lag_" in metric.name, metric


def test_every_event_has_a_sentence_and_known_fields():
    for event in declared.EVENTS.values():
        assert re.fullmatch(r"[a-z]+(_[a-z]+)*", event.name), event
        assert event.sentence.endswith("."), event
        assert event.level in declared.LEVELS
        assert set(event.fields) <= set(declared.FIELDS), event


def test_the_constants_are_the_registry():
    constants = {
        value for name, value in vars(declared).items() if name.isupper() and isinstance(value, str)
    }
    assert constants == {*declared.METRICS, *declared.EVENTS, *declared.TRACES}


def test_the_document_is_what_the_declarations_say():
    text = (ROOT / "docs" / "metrics.md").read_text()
    assert text == declared.document(), "run: python -m delta_sink.telemetry > docs/metrics.md"


KINDS = {"event": None, "count": "counter", "gauge": "gauge", "observe": "histogram"}


def calls_in_the_source():
    """Yield place, method, name and keywords of each call `….telemetry.event(…)` and the like.

    Names that only running tells are left out.
    """
    for path in sorted((ROOT / "delta_sink").rglob("*.py")):
        if "testing" in path.parts:  # fakes may count for themselves
            continue
        tree = ast.parse(path.read_text())
        known = vars(declared) | constants_of(tree)
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            owner = node.func.value
            if getattr(owner, "attr", getattr(owner, "id", "")).strip("_") != "telemetry":
                continue
            if node.func.attr in KINDS:
                first = node.args[0]
                named = known.get(getattr(first, "attr", getattr(first, "id", "")))
                name = first.value if isinstance(first, ast.Constant) else named
                if isinstance(name, str):
                    keywords = {keyword.arg for keyword in node.keywords}
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", node.func.attr, name, keywords


def constants_of(tree: ast.Module) -> dict[str, object]:
    """Return the texts that a module gives names to at its top."""
    found = {}
    for node in tree.body:
        if isinstance(node, ast.AnnAssign | ast.Assign) and isinstance(node.value, ast.Constant):
            target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
            found[getattr(target, "id", "")] = node.value.value
    return found


def test_all_code_records_only_what_is_declared():
    wrong = []
    calls = list(calls_in_the_source())
    for where, method, name, keywords in calls:
        try:
            kind = KINDS[method]
            if kind is None:
                declared.check_event(name, keywords - {"level", None})
            elif None not in keywords:
                declared.check_metric(name, kind, keywords - {"amount", "value"})
        except AssertionError as error:
            wrong.append(f"{where}: {error}")
    assert wrong == []
    assert len(calls) > 10


def test_all_that_is_declared_is_recorded():
    text = "\n".join(
        path.read_text()
        for path in sorted((ROOT / "delta_sink").rglob("*.py"))
        if path.name != "telemetry.py" and "testing" not in path.parts
    )
    constants = {value: name for name, value in vars(declared).items() if isinstance(value, str)}
    recorded = {
        name
        for name in declared.METRICS
        if name in text or re.search(rf"\b{constants[name]}\b", text)
    }
    assert set(declared.METRICS) - recorded == set()


# --- figures -----------------------------------------------------------------------------------


def test_it_is_what_the_port_asks_for():
    telemetry: Telemetry = make()[0]
    assert telemetry


def test_counters_add_by_tags():
    telemetry, _ = make()
    telemetry.count(declared.CONSUMED_RECORDS, 5, topic="a")
    telemetry.count(declared.CONSUMED_RECORDS, 2, topic="b")
    telemetry.count(declared.CONSUMED_RECORDS, topic="a")
    figures = telemetry.snapshot()
    assert figures.value(declared.CONSUMED_RECORDS, topic="a") == 6
    assert figures.value(declared.CONSUMED_RECORDS, topic="b") == 2
    assert figures.value(declared.CONSUMED_RECORDS, topic="never") == 0
    assert figures.total(declared.CONSUMED_RECORDS) == 8


def test_tags_have_no_order():
    telemetry, _ = make()
    telemetry.count(declared.STORE_REQUESTS, verb="put", status="ok")
    telemetry.count(declared.STORE_REQUESTS, status="ok", verb="put")
    figures = telemetry.snapshot()
    assert figures.value(declared.STORE_REQUESTS, status="ok", verb="put") == 2
    assert len(figures.counters) == 1


def test_gauges_keep_the_last_value():
    telemetry, _ = make()
    telemetry.gauge(declared.TABLE_VERSION, 7)
    telemetry.gauge(declared.TABLE_VERSION, 8)
    assert telemetry.snapshot().value(declared.TABLE_VERSION) == 8


def test_histograms_count_by_upper_bound():
    telemetry, _ = make()
    bounds = declared.LATENCY_BUCKETS_S
    for value in (0.0, bounds[0], bounds[0] + 1e-9, bounds[-1], bounds[-1] + 1):
        telemetry.observe(declared.STAGE_DURATION, value, stage="commit")
    found = telemetry.snapshot().histograms[(declared.STAGE_DURATION, (("stage", "commit"),))]
    assert found.buckets == bounds
    assert found.counts[:2] == (2, 1)
    assert found.counts[-2:] == (1, 1)
    assert found.count == 5
    assert found.sum == pytest.approx(2 * bounds[0] + 2 * bounds[-1] + 1)


def test_a_snapshot_stands_still():
    telemetry, _ = make()
    telemetry.count(declared.REBALANCES)
    telemetry.observe(declared.FRESHNESS, 1, topic="a")
    before = telemetry.snapshot()
    telemetry.count(declared.REBALANCES)
    telemetry.observe(declared.FRESHNESS, 1, topic="a")
    assert before.value(declared.REBALANCES) == 1
    assert next(iter(before.histograms.values())).count == 1


def test_threads_lose_no_count():
    telemetry, _ = make()

    def work():
        for _ in range(2_000):
            telemetry.count(declared.REBALANCES)
            telemetry.observe(declared.FRESHNESS, 0.1, topic="a")

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    figures = telemetry.snapshot()
    assert figures.value(declared.REBALANCES) == 16_000
    assert next(iter(figures.histograms.values())).count == 16_000


@pytest.mark.parametrize(
    "record",
    [
        lambda t: t.count("delta_sink_consumed_record_total"),
        lambda t: t.count(declared.CONSUMED_RECORDS),
        lambda t: t.count(declared.CONSUMED_RECORDS, topic="a", partition=3),
        lambda t: t.gauge(declared.CONSUMED_RECORDS, 1, topic="a"),
        lambda t: t.count(declared.TABLE_VERSION),
        lambda t: t.observe(declared.TABLE_VERSION, 1),
        lambda t: t.count(declared.REBALANCES, -1),
        lambda t: t.event("table_commited"),
        lambda t: t.event(declared.WAITING, value="a record"),
        lambda t: t.event(declared.WAITING, "urgent", reason="x"),
    ],
)
def test_what_is_not_declared_is_a_programmers_error(record):
    telemetry, stream = make()
    with pytest.raises(AssertionError):
        record(telemetry)
    assert stream.getvalue() == ""


def test_series_are_bounded(monkeypatch):
    monkeypatch.setattr(logs, "SERIES_MAX", 3)
    telemetry, _ = make()
    for number in range(10):
        telemetry.count(declared.CONSUMED_RECORDS, topic=f"t{number}")
        telemetry.observe(declared.FRESHNESS, 1, topic=f"t{number}")
    telemetry.gauge(declared.TABLE_VERSION, 1)
    telemetry.count(declared.CONSUMED_RECORDS, topic="t0")
    figures = telemetry.snapshot()
    assert len(figures.counters) + len(figures.histograms) == 3
    assert figures.value(declared.CONSUMED_RECORDS, topic="t0") == 2
    assert telemetry.series_lost == 18


# --- lines -------------------------------------------------------------------------------------


def test_one_line_a_commit():
    line = human(
        declared.TABLE_COMMITTED,
        version=42, rows=12_345, files=2, bytes=1_234_567, partitions=3, duration_ms=41,
    )  # fmt: skip
    assert line == (
        "12:00:01.234 committed v42: 12,345 rows, 2 files, 1.2 MB, 3 partitions in 41 ms\n"
    )


def test_a_commit_with_everything():
    line = human(
        declared.TABLE_COMMITTED,
        "warning",
        version=7, rows=1, files=1, bytes=999, partitions=1, dead_letters=2, skipped=1, attempt=3,
        freshness_ms=1_204, duration_ms=1_000,
    )  # fmt: skip
    assert line == (
        "12:00:01.234 warning: committed v7: 1 row, 1 file, 999 B, 1 partition, 2 dead letters,"
        " 1 skipped record in 1,000 ms, 1,204 ms old (try 3)\n"
    )


def test_other_events_name_their_place_first():
    line = human(
        declared.FENCED,
        reason="taken over", offset_next=9_000, topic="orders", partition=3, offset_expected=7,
    )  # fmt: skip
    assert line == (
        "12:00:01.234 warning: fenced orders/3: offset_expected=7 offset_next=9,000"
        " reason=taken over\n"
    )


def test_events_that_are_one_sentence():
    assert human(declared.WAITING, reason="topic orders does not exist yet") == (
        "12:00:01.234 warning: waiting: topic orders does not exist yet\n"
    )


def test_the_graver_level_counts():
    assert "warning: " in human(declared.FENCED, "debug")
    assert "error: " in human(declared.FENCED, "error")
    assert "info" not in human(declared.TABLE_OPENED)
    telemetry, stream = make(level="warning")
    telemetry.event(declared.TABLE_OPENED, version=1)
    telemetry.event(declared.FENCED, "info")
    assert stream.getvalue().count("\n") == 1


def test_json_is_one_object_a_line():
    telemetry, stream = make(format="json")
    telemetry.event(
        declared.FENCED, topic="orders", partition=3, offset_next=2**63, reason="two\nlines",
    )  # fmt: skip
    line = stream.getvalue()
    assert line.endswith("\n")
    assert "\n" not in line[:-1]
    assert list(json.loads(line).items()) == [
        ("ts", "2026-11-27T12:00:01.234Z"),
        ("level", "warning"),
        ("event", "fenced"),
        ("sink", "orders"),
        ("topic", "orders"),
        ("partition", 3),
        ("offset_next", 2**63),
        ("reason", "two\nlines"),
    ]


def test_json_of_every_kind_of_value():
    telemetry, stream = make(format="json")
    telemetry.event(
        declared.WORKER_STARTED,
        partitions=[("orders", 1)],
        topics={"b", "a"},
        error=ValueError("odd \ud800 text"),
        duration_ms=float("nan"),
        files=None,
        table={"k": Path("/x")},
    )
    found = json.loads(stream.getvalue())
    assert found["partitions"] == [["orders", 1]]
    assert found["topics"] == ["a", "b"]
    assert found["error"] == "odd \\ud800 text"
    assert found["duration_ms"] is None
    assert found["files"] is None
    assert found["table"] == {"k": "/x"}


def test_a_field_cannot_forge_a_line():
    line = human(declared.WORKER_FAILED, error="bad\n12:00:01.234 committed v9\x1b[2J")
    assert line.count("\n") == 1
    assert "\x1b" not in line
    assert r"bad\n12:00:01.234" in line


@pytest.mark.parametrize("format_", ["human", "json"])
def test_secrets_are_never_seen(format_):
    telemetry, stream = make(format=format_, secrets=['hunter2"quoted', "p4ssw0rd", "", "abc"])
    telemetry.event(
        declared.WORKER_FAILED,
        error='cannot log in with p4ssw0rd or hunter2"quoted',
        topics=["p4ssw0rd"],
        table={"p4ssw0rd": "xp4ssw0rdx"},
        reason="abc",
    )
    text = stream.getvalue()
    assert "p4ssw0rd" not in text
    assert "hunter2" not in text
    assert "cannot log in with *** or ***" in text
    assert "abc" in text


def test_long_texts_are_cut():
    line = human(declared.WORKER_FAILED, error="x" * 100_000)
    assert len(line) < 3_000
    assert line.endswith("…\n")


def test_color_is_asked_for():
    telemetry, stream = make(is_colored=True)
    telemetry.event(declared.WORKER_FAILED, error="x")
    assert stream.getvalue() == (
        "\x1b[2m12:00:01.234\x1b[0m \x1b[31merror: worker failed: error=x\x1b[0m\n"
    )


def test_a_stream_that_fails_costs_lines_and_nothing_else():
    class Full(io.StringIO):
        def write(self, _):
            raise OSError(28, "no space left on device")

    telemetry = LogTelemetry(Full(), clock=FixedClock(), sink="orders")
    telemetry.event(declared.REJOINED, reason="x")
    assert telemetry.lines_lost == 1
    closed, stream = make()
    stream.close()
    closed.event(declared.REJOINED, reason="x")
    assert closed.lines_lost == 1


def test_a_signal_that_logs_in_the_middle_of_a_line_costs_that_line():
    class Interrupted(io.RawIOBase):
        """Calls back once, from inside of a write, as a signal handler would."""

        def __init__(self):
            self.inner = None
            self.written = b""

        def writable(self):
            return True

        def write(self, data):
            if self.inner is not None:
                inner, self.inner = self.inner, None
                inner()
            self.written += bytes(data)
            return len(data)

    raw = Interrupted()
    telemetry = LogTelemetry(
        io.TextIOWrapper(io.BufferedWriter(raw)), clock=FixedClock(), sink="orders"
    )
    raw.inner = lambda: telemetry.event(declared.SIGNAL_RECEIVED, reason="SIGTERM")
    telemetry.event(declared.REJOINED, reason="x")
    assert telemetry.lines_lost == 1
    assert raw.written.startswith(b"12:00:01.234 warning: rejoined: reason=x\n")


def test_threads_write_whole_lines():
    telemetry, stream = make(format="json")

    def work():
        for number in range(200):
            telemetry.event(declared.TABLE_COMMITTED, version=number)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 1_600
    assert all(json.loads(line)["event"] == "table_committed" for line in lines)


# --- libraries ---------------------------------------------------------------------------------


@pytest.fixture
def captured():
    telemetry, stream = make(format="json", secrets=["s3cret-key"])
    telemetry.capture_libraries()
    yield telemetry, stream
    telemetry.release_libraries()


def test_what_libraries_log_goes_into_the_same_stream(captured):
    _, stream = captured
    logging.getLogger("botocore.auth").warning("refused %s", "s3cret-key")
    logging.getLogger("botocore.auth").info("signing with s3cret-key")
    logging.getLogger("botocore.auth").debug("s3cret-key")
    try:
        raise KeyError("missing")
    except KeyError:
        logging.getLogger("urllib3").exception("request failed")
    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert first["event"] == "library_logged"
    assert (first["level"], first["logger"]) == ("warning", "botocore.auth")
    assert first["error"] == "refused ***"
    assert second["level"] == "error"
    assert second["error"] == "request failed: KeyError: 'missing'"


def test_warnings_go_into_the_same_stream(captured):
    _, stream = captured
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(False)
        logging.captureWarnings(True)
        warnings.warn("old way", DeprecationWarning, stacklevel=1)
    found = json.loads(stream.getvalue())
    assert found["logger"] == "py.warnings"
    assert found["error"].endswith("DeprecationWarning: old way")


def test_a_message_that_does_not_fit_its_arguments_is_logged_as_it_is(captured):
    telemetry, stream = captured
    record = logging.LogRecord("odd", logging.WARNING, "x.py", 1, "%d things", ("many",), None)
    telemetry._handler.handle(record)
    assert json.loads(stream.getvalue())["error"] == "%d things"


def test_release_gives_the_root_logger_back():
    before = list(logging.getLogger().handlers)
    telemetry, stream = make()
    telemetry.release_libraries()
    telemetry.capture_libraries()
    with pytest.raises(AssertionError, match="already"):
        telemetry.capture_libraries()
    telemetry.release_libraries()
    telemetry.release_libraries()
    assert logging.getLogger().handlers == before
    logging.getLogger("x").info("nothing")
    assert stream.getvalue() == ""


@pytest.mark.parametrize(
    ("bytes_", "text"),
    [
        (0, "0 B"), (999, "999 B"), (1_000, "1.0 kB"), (999_949, "999.9 kB"),
        (999_951, "1.0 MB"), (1_234_567_890, "1.2 GB"), (5 * 10**13, "50.0 TB"),
    ],
)  # fmt: skip
def test_sizes(bytes_, text):
    assert logs.size(bytes_) == text


def test_a_library_that_logs_without_an_error_where_one_may_be_is_heard():
    """gRPC's exporter passes `exc_info=False`, which a record keeps as it is."""
    telemetry, stream = make()
    telemetry.capture_libraries()
    try:
        logging.getLogger("grpc").error("it was refused", exc_info=False)
    finally:
        telemetry.release_libraries()
    assert "it was refused" in stream.getvalue()
