"""Results as tables for a person."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from benchmarks.commit_path import (
    EXPECTED_GROWTH_MAX,
    EXPECTED_RATIOS,
    HEADLINE_FSYNC,
    OURS,
    THEIRS,
    CommitPath,
    Point,
)
from benchmarks.compaction import (
    CONTENDERS as COMPACTORS,
)
from benchmarks.compaction import (
    EXPECTED_MEMORY_MAX,
    EXPECTED_TIME_MAX,
    Compaction,
)
from benchmarks.drain import BARE, CONTENDERS, EXPECTED, LOOP, SINK, Drain
from benchmarks.drain import Point as DrainPoint
from benchmarks.fsync import OFF, ON, Fsync
from benchmarks.lanes import Timings
from benchmarks.scale_out import EXPECTED_RATIO_MAX, ScaleOut
from benchmarks.small_files import SINKS, WITH, WITHOUT, SmallFiles
from benchmarks.telemetry import EXPECTED_COST_MAX, HALF_WIDTH_MAX, Cost

WIDTH = 100


def show(
    result: CommitPath | Fsync | Drain | Compaction | ScaleOut | SmallFiles | Cost,
    console: Console,
) -> None:
    """Print `result`."""
    match result:
        case CommitPath():
            _show_commits(result, console)
            _show_opens(result, console)
        case Fsync():
            _show_fsync(result, console)
        case Drain():
            _show_drain(result, console)
        case Compaction():
            _show_compaction(result, console)
        case ScaleOut():
            _show_scale_out(result, console)
        case SmallFiles():
            _show_small_files(result, console)
        case Cost():
            _show_telemetry(result, console)


def verdict(found: float, *, at_least: float | None = None, at_most: float | None = None) -> str:
    """Return whether `found` is as expected, in words; nothing where nothing was expected."""
    if at_least is not None:
        return f"≥ {at_least:g}x {'met' if found >= at_least else 'MISSED'}"
    if at_most is not None:
        return f"≤ {at_most:g}x {'met' if found <= at_most else 'MISSED'}"
    return ""


def _table(*columns: str) -> Table:
    table = Table()
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _ms(timings: Timings) -> tuple[str, str]:
    return f"{timings.p50_ms:,.2f}", f"{timings.p99_ms:,.2f}"


def _show_commits(result: CommitPath, console: Console) -> None:
    shape = result.shape
    console.print(
        f"commit path: {shape.rows:,} rows a commit, {shape.commits} commits each, ms", style="bold"
    )
    table = _table(
        "fsync",
        "table\ncommits",
        f"{OURS}\np50",
        "p99",
        f"{THEIRS}\np50",
        "p99",
        "ratio\nof p50",
        "expected",
    )
    for fsync in (HEADLINE_FSYNC, not HEADLINE_FSYNC):
        for point in result.points:
            table.add_row(*_commit_row(point, fsync=fsync))
        table.add_section()
    console.print(table)
    console.print(
        "headline: the rows without fsync, where both programs run as they are; in those with "
        "fsync ours is as users run it, and deltalake's files are flushed for it afterwards."
    )
    for fsync in (HEADLINE_FSYNC, not HEADLINE_FSYNC):
        growth = result.growth(fsync=fsync)
        first, last = shape.sizes[0], shape.sizes[-1]
        console.print(
            f"our p50 at {last:,} commits against {first:,}, fsync {_on(fsync)}: {growth:.2f}x "
            f"({verdict(growth, at_most=EXPECTED_GROWTH_MAX)})"
        )
    verbs = ", ".join(f"{verb} {count}" for verb, count in sorted(result.requests.items()))
    console.print(f"our requests a commit: {result.requests_per_commit:.2f} ({verbs})\n")


def _on(fsync: bool) -> str:
    return "on" if fsync else "off"


def _commit_row(point: Point, *, fsync: bool) -> tuple[str, ...]:
    ratio = point.ratio(fsync=fsync)
    return (
        _on(fsync),
        f"{point.size:,}",
        *_ms(point.commits[OURS, fsync]),
        *_ms(point.commits[THEIRS, fsync]),
        f"{ratio:.1f}x",
        verdict(ratio, at_least=EXPECTED_RATIOS.get(point.size)),
    )


def _show_opens(result: CommitPath, console: Console) -> None:
    console.print(
        f"opening the table, checkpoint at its head, {result.shape.opens} times each, ms",
        style="bold",
    )
    table = _table(
        "table\ncommits",
        "open_log\np50",
        "worst",
        "DeltaTable\np50",
        "worst",
        "ratio\nof p50",
    )
    for point in result.points:
        ours, theirs = _ms(point.opens[OURS]), _ms(point.opens[THEIRS])
        table.add_row(f"{point.size:,}", *ours, *theirs, f"{point.open_ratio:.1f}x")
    console.print(table)
    console.print()


def _show_fsync(result: Fsync, console: Console) -> None:
    shape = result.shape
    console.print(
        f"what fsync costs: {shape.rows:,} rows a commit, {shape.commits} commits each, ms",
        style="bold",
    )
    table = _table(
        "fsync",
        "p50",
        "p99",
    )
    table.add_row("off", *_ms(result.timings[OFF]))
    table.add_row("on", *_ms(result.timings[ON]))
    console.print(table)
    console.print(f"ratio of p50, on against off: {result.ratio:.1f}x\n")


def _show_compaction(result: Compaction, console: Console) -> None:
    shape = result.shape
    console.print(
        f"compaction: {shape.files:,} files of {shape.rows:,} rows in {shape.table_partitions} "
        f"table partitions, {result.input_bytes / 1e6:,.0f} MB; medians of {shape.runs} runs",
        style="bold",
    )
    table = _table("", "s", "CPU s", "peak\nMiB", "files\nleft", "off\ntarget")
    for name in COMPACTORS:
        table.add_row(
            name,
            f"{result.middle(name, lambda run: run.duration_s):,.1f}",
            f"{result.middle(name, lambda run: run.cpu_s):,.1f}",
            f"{result.middle(name, lambda run: run.peak_bytes) / 2**20:,.0f}",
            f"{result.middle(name, lambda run: run.files):,.0f}",
            f"{result.middle(name, lambda run: run.off_target):,.0f}",
        )
    console.print(table)
    time, memory = result.time_ratio, result.memory_ratio
    console.print(
        f"ratio of time: {time:.2f}x  {verdict(time, at_most=EXPECTED_TIME_MAX)}; "
        f"of peak memory: {memory:.2f}x  {verdict(memory, at_most=EXPECTED_MEMORY_MAX)}\n"
    )


def _show_scale_out(result: ScaleOut, console: Console) -> None:
    for count, seconds in result.seconds.items():
        each = ", ".join(f"{taken:,.1f}" for taken in seconds)
        console.print(f"compactors of one thread: {count}; seconds from command to outcome: {each}")
    console.print(
        f"two by one: {result.ratio:.2f}x  {verdict(result.ratio, at_most=EXPECTED_RATIO_MAX)}\n"
    )


def _show_small_files(result: SmallFiles, console: Console) -> None:
    minutes = result.shape.minutes
    console.print(
        f"small files: {result.rows:,} rows in {minutes:g} minutes; every row is in both tables "
        "exactly once",
        style="bold",
    )
    table = _table(
        "s", "", "files", "files in\nthe folder", "entries since\ncheckpoint", *result.engines
    )
    samples = result.samples
    step = max(1, len(samples[WITH]) // 10)
    for with_it, without in list(zip(samples[WITH], samples[WITHOUT], strict=True))[::-step][::-1]:
        for name, sample in ((WITH, with_it), (WITHOUT, without)):
            table.add_row(
                f"{sample.at_s:,.0f}",
                name,
                f"{sample.files_live:,}",
                f"{sample.files_stored:,}",
                f"{sample.since_checkpoint:,}",
                *(f"{sample.scan_s[engine]:.3f} s" for engine in result.engines),
            )
        table.add_section()
    console.print(table)
    for name in SINKS:
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in result.operations[name].items())
        console.print(
            f"{name}: {result.appends_per_s(name):.1f} appends a second; in the log: {kinds}"
        )
    for engine in result.engines:
        console.print(
            f"a scan by {engine}, without maintenance by with it: {result.scan_ratio(engine):.1f}x "
            "in the last quarter (medians)"
        )
    console.print(f"scans that were repeated as a file was vacuumed: {result.scans_repeated}\n")


def _show_drain(result: Drain, console: Console) -> None:
    if result.skipped is not None:
        console.print(f"{result.skipped}\n")
    for point in result.points:
        _show_drain_point(point, result.shape.runs, console)


def _show_drain_point(point: DrainPoint, runs: int, console: Console) -> None:
    mean_bytes = point.size_bytes / point.records
    console.print(
        f"draining {point.records:,} records of {mean_bytes:,.0f} bytes, {point.kind}: "
        f"medians of {runs} runs",
        style="bold",
    )
    table = _table("", "records/s", "MB/s", "CPU-s a GB", "peak RSS\nMiB")
    for name in CONTENDERS:
        table.add_row(
            name,
            f"{point.records_per_s(name):,.0f}",
            f"{point.mb_per_s(name):,.0f}",
            f"{point.cpu_s_per_gb(name):.1f}",
            f"{point.peak_mib(name):,.0f}",
        )
    console.print(table)
    times, cpu_s, share = EXPECTED[point.kind]
    against_loop, against_bare = point.times_as_fast(LOOP), point.times_as_fast(BARE)
    found_s = point.cpu_s_per_gb(SINK)
    is_cheap = "met" if found_s <= cpu_s else "MISSED"
    console.print(
        f"{against_loop:.2f}x the plain loop ({verdict(against_loop, at_least=times)}), "
        f"{against_bare:.2f}x bare consume ({verdict(against_bare, at_least=share)}), "
        f"{found_s:.1f} CPU-s a GB (≤ {cpu_s:g} {is_cheap})"
    )
    stages = ", ".join(
        f"{name} {seconds / point.size_bytes * 1e9:.2f}" for name, seconds in point.stages.items()
    )
    console.print(f"where the CPU of one more run went, s a GB: {stages}\n")


def _show_telemetry(result: Cost, console: Console) -> None:
    console.print("telemetry: a drain with it against one without", style="bold")
    if result.skipped is not None:
        console.print(f"{result.skipped}\n")
        return
    is_sure = "" if result.half_width <= HALF_WIDTH_MAX else ", wider than wanted"
    console.print(
        f"{result.throughput:.3f}x the throughput "
        f"({verdict(result.throughput, at_least=1 - EXPECTED_COST_MAX)}), "
        f"± {result.half_width:.3f} in {len(result.pairs)} pairs{is_sure}; "
        f"{result.cpu:.3f}x the CPU; {result.scrapes} scrapes, {result.spans} spans\n"
    )
