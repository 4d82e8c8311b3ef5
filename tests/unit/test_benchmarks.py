"""The benchmarks run, measure what they say, and refuse tables that came out wrong."""

import io
import json
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from rich.console import Console

from benchmarks import commit_path, compaction, fsync, scale_out, small_files, telemetry
from benchmarks.__main__ import main
from benchmarks.appender import APP_ID, SCHEMA, Appender, grow, link_table, make_batches
from benchmarks.commit_path import CONTENDERS, OURS, THEIRS, CommitPath, DeltalakeLane, Point
from benchmarks.lanes import Timings, measure, turns
from benchmarks.plot import ticks
from benchmarks.report import WIDTH, show, verdict
from benchmarks.usage import usage_of
from delta_sink.adapters.localdisk import LocalDisk

TINY = commit_path.Shape(sizes=(3, 100), commits=4, block=2, rows=40, opens=2)


def silent(text):
    pass


def shown(result):
    console = Console(file=io.StringIO(), width=WIDTH, highlight=False)
    show(result, console)
    return console.file.getvalue()


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """A tiny run of the commit path; its tables were read back by deltalake within it."""
    return commit_path.run(TINY, str(tmp_path_factory.mktemp("bench")), silent)


def test_every_contender_is_timed_at_every_size(result):
    assert [point.size for point in result.points] == [3, 100]
    for point in result.points:
        assert set(point.commits) == set(CONTENDERS)
        assert set(point.opens) == {OURS, THEIRS}
        for timings in point.commits.values():
            assert len(timings.seconds) == TINY.commits
            assert all(second > 0 for second in timings.seconds)
        assert all(len(timings.seconds) == TINY.opens for timings in point.opens.values())


def test_our_commit_makes_two_requests(result):
    commits = 2 * 2 * TINY.commits  # two sizes, with fsync and without
    assert result.requests == {"put": commits, "put_if_absent": commits}
    assert result.requests_per_commit == 2.0


def test_ratios_and_growth_are_those_of_medians():
    def timings(ms):
        return Timings((ms / 1000, ms / 1000, 9.0))

    def point(size, ours_ms, theirs_ms):
        commits = {
            (OURS, False): timings(ours_ms),
            (THEIRS, False): timings(theirs_ms),
            (OURS, True): timings(2 * ours_ms),
            (THEIRS, True): timings(3 * theirs_ms),
        }
        return Point(size, commits, {OURS: timings(4), THEIRS: timings(6)})

    made = CommitPath(TINY, (point(3, 2, 8), point(100, 3, 7.5)), {})
    assert made.points[0].ratio(fsync=False) == pytest.approx(4)
    assert made.points[0].ratio(fsync=True) == pytest.approx(6)
    assert made.points[0].open_ratio == pytest.approx(1.5)
    assert made.growth(fsync=False) == pytest.approx(1.5)
    text = shown(made)
    assert "≥ 3x MISSED" in text  # 7.5 against 3 at 100 commits
    assert "≥ 3x met" in text  # with fsync 22.5 against 6
    assert "1.50x (≤ 1.3x MISSED)" in text


def test_json_has_every_figure_of_the_tables(result):
    document = json.loads(json.dumps(result.as_json()))
    assert document["requests_per_commit"] == 2
    assert set(document["growth"]) == {"fsync", "no_fsync"}
    small, large = document["points"]
    assert (small["table_commits"], small["ratio_expected_min"]) == (3, None)
    assert (large["table_commits"], large["ratio_expected_min"]) == (100, 3.0)
    found = large["commit"]
    assert set(found) == {f"{n}/{f}" for n in (OURS, THEIRS) for f in ("fsync", "no_fsync")}
    ratio = found[f"{THEIRS}/fsync"]["p50_ms"] / found[f"{OURS}/fsync"]["p50_ms"]
    assert large["ratio"]["fsync"] == pytest.approx(ratio, rel=0.01)


def test_a_table_that_came_out_wrong_voids_the_run(tmp_path):
    batches = make_batches(TINY.rows)
    appender = Appender(str(tmp_path / "t"), fsync=False)
    grow(appender, batches, version=5)
    commit_path.check_table(str(tmp_path / "t"), version=5, shape=TINY)
    with pytest.raises(AssertionError, match="wanted"):
        commit_path.check_table(str(tmp_path / "t"), version=6, shape=TINY)


def test_both_write_the_same_rows_offsets_and_codec(tmp_path):
    batches = make_batches(TINY.rows)
    ours = Appender(str(tmp_path / "ours"), fsync=True)
    grow(ours, batches, version=2)
    link_table(str(tmp_path / "ours"), str(tmp_path / "theirs"))
    ours.append(batches[1])
    DeltalakeLane(str(tmp_path / "theirs"), batches, fsync=True).run(1)
    tables = [DeltaTable(str(tmp_path / name)) for name in ("ours", "theirs")]
    rows = [table.to_pyarrow_table().sort_by("order_id") for table in tables]
    assert rows[0].num_rows == 2 * TINY.rows
    assert rows[0].equals(rows[1])
    assert {table.transaction_version(str(APP_ID)) for table in tables} == {2 * TINY.rows}
    assert [table.version() for table in tables] == [3, 3]
    for table in tables:
        [*_, newest] = sorted(table.file_uris(), key=lambda uri: Path(uri).stat().st_mtime_ns)
        column = pq.read_metadata(newest).row_group(0).column(0)
        assert column.compression == "ZSTD"


def test_batches_are_the_same_in_every_run_and_differ_from_each_other():
    first, again = make_batches(100), make_batches(100)
    assert all(a.equals(b) for a, b in zip(first, again, strict=True))
    assert not first[0].equals(first[1])
    assert first[0].schema.equals(SCHEMA.arrow)
    assert first[0]["note"].null_count > 0


def test_a_linked_table_is_a_table_of_its_own(tmp_path):
    batches = make_batches(TINY.rows)
    grow(Appender(str(tmp_path / "a"), fsync=False), batches, version=3)
    DeltaTable(str(tmp_path / "a")).create_checkpoint()
    link_table(str(tmp_path / "a"), str(tmp_path / "b"))
    pointer = (tmp_path / "a/_delta_log/_last_checkpoint").read_bytes()
    grow(Appender(str(tmp_path / "b"), fsync=False), batches, version=6)
    DeltaTable(str(tmp_path / "b")).create_checkpoint()
    assert DeltaTable(str(tmp_path / "a")).version() == 3
    assert (tmp_path / "a/_delta_log/_last_checkpoint").read_bytes() == pointer
    assert DeltaTable(str(tmp_path / "b")).version() == 6


class RecordingLane:
    def __init__(self, name, trace):
        self.name, self.trace = name, trace

    def settle(self):
        self.trace.append(f"{self.name}-")

    def run(self, number):
        self.trace.append(f"{self.name}{number}")
        return number / 1000


def test_lanes_take_turns_forth_and_back():
    trace = []
    lanes = {name: RecordingLane(name, trace) for name in "ab"}
    taken = measure(lanes, runs=4, block=2)
    assert " ".join(trace) == "a- a0 a1 b- b0 b1 b- b2 b3 a- a2 a3"
    assert taken["a"].seconds == (0.0, 0.001, 0.002, 0.003)
    with pytest.raises(AssertionError):
        list(turns(2, runs=6, block=2))  # the way back would be missing


def test_percentiles():
    hundred = Timings(tuple(n / 1000 for n in range(1, 101)))
    assert (hundred.p50_ms, hundred.p99_ms) == pytest.approx((50.5, 99.0))
    fifty = Timings(tuple(n / 1000 for n in range(50, 0, -1)))
    assert (fifty.p50_ms, fifty.p99_ms) == pytest.approx((25.5, 50.0))


def test_verdicts():
    assert verdict(3.0, at_least=3) == "≥ 3x met"
    assert verdict(2.99, at_least=3) == "≥ 3x MISSED"
    assert verdict(1.3, at_most=1.3) == "≤ 1.3x met"
    assert verdict(1.31, at_most=1.3) == "≤ 1.3x MISSED"
    assert verdict(7.0) == ""


def test_fsync_is_on_in_one_lane_and_off_in_the_other(tmp_path, monkeypatch):
    made = []

    def local_disk(folder, *, fsync):
        made.append((Path(folder).name, fsync))
        return LocalDisk(folder, fsync=fsync)

    monkeypatch.setattr("benchmarks.appender.LocalDisk", local_disk)
    result = fsync.run(fsync.Shape(commits=4, block=2, rows=40), str(tmp_path), silent)
    assert made == [("durable", True), ("volatile", False)]
    assert {name: len(timings.seconds) for name, timings in result.timings.items()} == {
        fsync.ON: 4,
        fsync.OFF: 4,
    }
    assert DeltaTable(str(tmp_path / "durable")).count() == 4 * 40
    assert DeltaTable(str(tmp_path / "volatile")).count() == 4 * 40
    assert f"{result.ratio:.1f}x" in shown(result)


def test_deltalake_is_flushed_for_only_where_fsync_is_asked_for(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr("benchmarks.commit_path.flush", flushed.append)
    batches = make_batches(TINY.rows)
    grow(Appender(str(tmp_path), fsync=False), batches, version=2)
    DeltalakeLane(str(tmp_path), batches, fsync=False).run(0)
    assert flushed == []
    DeltalakeLane(str(tmp_path), batches, fsync=True).run(0)
    data, *rest = flushed
    assert data in DeltaTable(str(tmp_path)).file_uris()
    entry = tmp_path / "_delta_log" / f"{4:020d}.json"
    assert rest == [str(tmp_path), str(entry), str(entry.parent)]


def test_the_command_prints_json_and_leaves_nothing_behind(tmp_path, capsys):
    assert main(["fsync", "--quick", "--json", "--dir", str(tmp_path)]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [result["benchmark"] for result in document["results"]] == ["fsync"]
    assert document["environment"]["deltalake"]
    assert list(tmp_path.iterdir()) == []


def test_the_command_prints_tables(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(commit_path.Shape, "quick", classmethod(lambda cls: TINY))
    assert main(["commit_path", "--quick", "--dir", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "our requests a commit: 2.00 (put 16, put_if_absent 16)" in text
    assert "opening the table" in text
    assert "headline" in text


def test_an_unknown_benchmark_is_named(capsys):
    assert main(["comit_path"]) == 2
    error = capsys.readouterr().err
    names = "commit_path, fsync, drain, compaction, scale_out, small_files, telemetry"
    assert error == f"unknown benchmark 'comit_path', wanted one of {names}\n"


@pytest.mark.process
def test_compaction_is_compared_on_copies_of_one_table(tmp_path):
    shape = compaction.Shape(files=12, rows=50, table_partitions=2, target_bytes=1 << 20, runs=1)
    found = compaction.run(shape, str(tmp_path), silent)
    for name in compaction.CONTENDERS:
        [run] = found.runs[name]
        assert (run.files, run.off_target) == (2, 0)
        assert run.peak_bytes > 1 << 20
    assert found.as_json()["time_ratio"] == round(found.time_ratio, 3) > 0
    assert "optimize.compact" in shown(found)


@pytest.mark.process
def test_compactors_share_one_command(tmp_path):
    shape = compaction.Shape(files=12, rows=50, table_partitions=3, target_bytes=1 << 20, runs=1)
    found = scale_out.run(shape, str(tmp_path), silent)
    assert {count: len(seconds) for count, seconds in found.seconds.items()} == {1: 1, 2: 1}
    assert found.as_json()["ratio"] == round(found.ratio, 3) > 0
    assert "two by one" in shown(found)


@pytest.mark.process
def test_the_peak_of_a_process_is_its_own(tmp_path):
    """The kernel adds that of the process that starts it, which here is a large one."""
    ballast = bytearray(b"x") * (200 << 20)
    small = usage_of([sys.executable, "-c", "pass"], tmp_path)
    large = usage_of([sys.executable, "-c", "x = bytearray(b'x') * (100 << 20)"], tmp_path)
    assert small.peak_bytes < 30 << 20 < len(ballast)
    assert 100 << 20 < large.peak_bytes < 130 << 20
    with pytest.raises(AssertionError, match="ended with 3"):
        usage_of([sys.executable, "-c", "raise SystemExit(3)"], tmp_path)


def test_a_contender_finds_its_modules_compiled(tmp_path, monkeypatch):
    """Whatever the benchmark's own process was told: else it would compile them in each run."""
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    usage_of([sys.executable, "-c", "import tests.unit.scripted"], tmp_path)
    assert list(tmp_path.rglob("scripted.*.pyc"))


def small_files_of(scans):
    """A result made up: `scans` are seconds with maintenance and without, sample by sample."""

    def samples(place, files):
        return tuple(
            small_files.Sample(
                60.0 * at, at, files * at, files * at, at, {"deltalake": pair[place]}
            )
            for at, pair in enumerate(scans, 1)
        )

    found = {small_files.WITH: samples(0, 1), small_files.WITHOUT: samples(1, 100)}
    operations = {name: {"WRITE": 600} for name in small_files.SINKS}
    return small_files.SmallFiles(small_files.Shape(1.0, 4), 30_000, found, operations, 0)


def polylines(svg):
    root = ET.fromstring(svg)
    return [
        [tuple(map(float, point.split(","))) for point in line.get("points").split()]
        for line in root.iter("{http://www.w3.org/2000/svg}polyline")
    ]


def test_small_files_are_drawn():
    result = small_files_of([(1.0, 1.0), (1.0, 2.0), (1.0, 3.0), (0.5, 4.0)])
    assert result.scan_ratio("deltalake") == 8.0
    assert result.appends_per_s(small_files.WITH) == 10.0
    few, _, many, fast, slow = polylines(result.plot())
    assert [x for x, _ in few] == [x for x, _ in slow]
    assert few[-1][1] - many[-1][1] > 200  # pixels, downwards
    assert fast[0] == slow[0]
    assert fast[-1][1] > fast[0][1] > slow[-1][1]
    text = shown(result)
    assert "10.0 appends a second" in text
    assert "8.0x in the last quarter" in text


def test_axes_have_round_numbers():
    assert ticks(10) == [0, 2, 4, 6, 8, 10]
    assert ticks(5_731) == list(range(0, 6_001, 1_000))
    assert ticks(0.43) == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5])
    assert ticks(0) == [0, 1]


@pytest.mark.long
@pytest.mark.process
def test_a_table_is_kept_healthy_and_another_is_left_alone(tmp_path, capsys):
    plots = tmp_path / "plots"
    plots.mkdir()
    dir_, asked = str(tmp_path), ["small_files", "--minutes", "0.6"]
    assert main([*asked, "--dir", dir_, "--plots", str(plots)]) == 0
    assert "every row is in both tables exactly once" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["plots"]
    document = json.loads((plots / "small-files.json").read_text())
    assert document["rows"] > 500 * 0.6 * 60
    for name in small_files.SINKS:
        samples = document["samples"][name]
        assert len(samples) == 4
        assert all(second > 0 for sample in samples for second in sample["scan_s"].values())
        assert document["operations"][name]["WRITE"] >= 3 * 0.6 * 60  # 10 with nothing else at work
    assert document["operations"][small_files.WITH]["OPTIMIZE"] >= 1
    assert "OPTIMIZE" not in document["operations"][small_files.WITHOUT]
    lines = polylines((plots / "small-files.svg").read_text())
    assert len(lines) == 3 + 2 * len(document["scan_ratio"])
    assert all(len(line) == 4 for line in lines)


def cost_of(*ratios):
    pairs = [telemetry.Pair(1 / ratio, 1.0, 1.1, 1.0) for ratio in ratios]
    return telemetry.Cost(telemetry.Shape(), tuple(pairs), 3, 5)


def test_the_cost_of_telemetry_is_a_geometric_mean_with_its_interval():
    """The quantiles are those of the tables of Student's distribution."""
    for degrees, quantile in ((1, 12.706), (3, 3.182), (7, 2.365), (30, 2.042), (120, 1.980)):
        assert telemetry.student_t(degrees) == pytest.approx(quantile, rel=0.01)
    assert cost_of(0.98).half_width == float("inf")
    found = cost_of(0.96, 1.0, 0.96, 1.0, 0.96, 1.0, 0.96, 1.0)
    assert found.throughput == pytest.approx(0.9798, abs=1e-4)
    assert found.half_width == pytest.approx(2.365 * 0.02182 / 8**0.5, rel=0.02)
    assert found.cpu == pytest.approx(1.1)
    assert "≥ 0.97x met" in shown(found)
    assert "wider than wanted" in shown(found)
    assert "wider" not in shown(cost_of(*[0.98] * 8))
    assert "MISSED" in shown(cost_of(*[0.9] * 8))


def test_pairs_are_made_until_the_interval_is_small(tmp_path, monkeypatch):
    orders = []

    def drained(backlog, folder, endpoint, seen):
        orders.append(endpoint is not None)
        is_slow = endpoint is not None and len(orders) < 16 and sum(orders) % 2
        return (1.2 if is_slow else 1.0), 1.0

    monkeypatch.setattr(telemetry, "_drained", drained)
    shape = telemetry.Shape(pairs_min=3, pairs_max=100)
    pairs = telemetry._pairs(shape, None, "http://c", None, str(tmp_path), silent)
    assert orders[:6] == [True, False, True, False, False, True]
    assert 8 < len(pairs) < 100
    assert telemetry.Cost(shape, tuple(pairs)).half_width <= telemetry.HALF_WIDTH_MAX
    assert telemetry.Cost(shape, tuple(pairs[:-1])).half_width > telemetry.HALF_WIDTH_MAX


def test_a_drain_with_telemetry_and_without_on_a_real_broker(tmp_path, kafka, monkeypatch):
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", kafka.bootstrap_servers)
    shape = telemetry.Shape(records=8_000, pairs_min=2, pairs_max=2)
    found = telemetry.run(shape, str(tmp_path), silent)
    assert len(found.pairs) == 2
    assert found.scrapes >= 2
    assert found.spans >= 10
    assert found.as_json()["throughput_ratio"] > 0
    assert "x the throughput" in shown(found)
    assert list(tmp_path.iterdir()) == [] or {p.name for p in tmp_path.iterdir()} == {"compiled"}
