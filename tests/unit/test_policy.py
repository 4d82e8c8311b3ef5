"""When maintenance is due: small files by table partition, times of cron, who asks for what."""

from __future__ import annotations

import datetime as dt

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from delta_sink.asking import PARTITIONS_MAX, Wanted, command_for, compactions_for
from delta_sink.control import Compact
from delta_sink.delta.actions import Add, Entry, Metadata, Remove
from delta_sink.delta.compaction_plan import CompactionPolicy, target_file_bytes
from delta_sink.delta.schema import Field, TableSchema
from delta_sink.policy import MINUTE_MS, Debt, FileTotals, SmallFiles, cron_due
from delta_sink.settings import CompactionSettings
from delta_sink.where import bind, parse_where, where_of

MIB = 1024 * 1024
NOW_MS = 1_764_000_000_000
POLICY = CompactionPolicy(100 * MIB, quiet_ms=1_000)
ASKS = CompactionSettings(small_files_max=10, small_bytes_max=50 * MIB, age_max_ms=60_000)


def entry(version: int, *, adds=(), removes=()) -> Entry:
    return Entry(
        version=version,
        e_tag="",
        adds=tuple(adds),
        removes=tuple(removes),
        txns={},
        protocol=None,
        metadata=None,
        commit_info=None,
    )


def add(name: str, *, day: str | None = "a", size: int = 1_000, at_ms: int = NOW_MS - 5_000) -> Add:
    return Add(
        path=name, partition_values={"day": day}, size=size, modification_time=at_ms,
        data_change=True, stats=None,
    )  # fmt: skip


def remove(name: str) -> Remove:
    return Remove(path=name, data_change=False, deletion_timestamp=NOW_MS)


def small(*entries: Entry) -> SmallFiles:
    found = SmallFiles(("day",), POLICY)
    for each in entries:
        found.apply(each)
    return found


def files(count: int, **options) -> list[Add]:
    return [add(f"{options}{number}", **options) for number in range(count)]


# --- small files ----------------------------------------------------------------------------------


def test_a_table_partition_asks_by_the_number_of_its_small_files():
    found = small(entry(1, adds=files(10)), entry(2, adds=files(9, day="b")))
    [debt] = found.due(ASKS, NOW_MS)
    assert (debt.values, debt.files, debt.size_bytes) == (("a",), 10, 10_000)
    assert debt.reason == "10 small files"


def test_by_their_bytes():
    [debt] = small(entry(1, adds=files(6, size=10 * MIB))).due(ASKS, NOW_MS)
    assert debt.reason == f"{60 * MIB} bytes in small files"


def test_by_the_age_of_the_oldest():
    old = files(2, at_ms=NOW_MS - 61_000)
    [debt] = small(entry(1, adds=old)).due(ASKS, NOW_MS)
    assert debt.reason == "a small file is 61 s old"
    assert small(entry(1, adds=old[:1])).due(ASKS, NOW_MS) == []  # one file cannot become fewer


def test_young_and_large_files_do_not_count():
    young = files(20, at_ms=NOW_MS - 500)
    large = files(20, size=90 * MIB)
    assert small(entry(1, adds=[*young, *large])).due(ASKS, NOW_MS) == []


def test_what_is_not_worth_a_rewrite_is_not_asked_for():
    # Each takes more than half of a target: rewriting them saves too little.
    assert small(entry(1, adds=files(10, size=70 * MIB))).due(ASKS, NOW_MS) == []


def test_removed_files_are_forgotten():
    found = small(entry(1, adds=files(10)))
    found.apply(entry(2, removes=[remove(each.path) for each in files(10)]))
    assert found.due(ASKS, NOW_MS) == []
    found.apply(entry(3, removes=[remove("never seen")]))


def test_the_empty_value_is_null():
    found = small(entry(1, adds=[*files(5, day=""), *files(5, day=None)]))
    [debt] = found.due(ASKS, NOW_MS)
    assert debt.values == (None,)


def test_forgetting_what_was_asked_for():
    found = small(entry(1, adds=[*files(30), *files(12, day="b")]))
    assert found.crowded(20) == [("a",)]
    found.forget(("a",))
    assert [debt.values for debt in found.due(ASKS, NOW_MS)] == [("b",)]
    found.apply(entry(2, removes=[remove(files(1)[0].path)]))  # it was forgotten before


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("1048576", MIB), ("100mb", 100 * MIB), ("2 GB", 2 << 30), ("", 7), ("much", 7), ("0", 7)],
)
def test_the_tables_own_target_goes_first(text, wanted):
    metadata = Metadata(id="t", schema_string="{}", configuration={"delta.targetFileSize": text})
    assert target_file_bytes(metadata, 7) == wanted


# --- asking ---------------------------------------------------------------------------------------

SCHEMA = TableSchema((Field("day", "date"), Field("n`odd", "string"), Field("x", "long")))


def metadata(*partition_by: str) -> Metadata:
    return Metadata(
        id="t", schema_string=SCHEMA.to_json(), partition_columns=partition_by, configuration={}
    )


def debts(count: int) -> list[Debt]:
    return [Debt((f"2026-11-{n + 1:02d}",), "so", 10, 10, NOW_MS) for n in range(count)]


def test_one_command_a_table_partition():
    found = list(compactions_for(debts(2), metadata("day"), NOW_MS))
    assert [each.args for each in found] == [
        Compact(where="`day` = '2026-11-01'"),
        Compact(where="`day` = '2026-11-02'"),
    ]
    assert len({each.name for each in found}) == 2


def test_one_for_the_table_where_they_are_many():
    [found] = compactions_for(debts(PARTITIONS_MAX + 1), metadata("day"), NOW_MS)
    assert found.args == Compact()


def test_everybody_names_a_request_alike_within_a_minute():
    wanted = Wanted("compact", Compact(), "so", NOW_MS)
    late = Wanted("compact", Compact(), "so", NOW_MS + MINUTE_MS)
    ids = [
        command_for(each, "/t", issuer, now_ms=NOW_MS).id
        for each in (wanted, late)
        for issuer in ("writer", "scheduler")
    ]
    assert ids[0] == ids[1] != ids[2] == ids[3]


def test_a_partition_that_no_filter_can_spell_means_the_whole_table():
    assert where_of(("n`odd",), ("a",), SCHEMA) is None


VALUES = {
    "string": st.text(max_size=12),
    "long": st.integers(-(2**63), 2**63 - 1).map(str),
    "date": st.dates().map(str),
    "boolean": st.sampled_from(["true", "false"]),
    "double": st.floats(allow_nan=False, allow_infinity=False).map(str),
}


@given(st.data(), st.sampled_from(sorted(VALUES)))
def test_a_filter_selects_its_table_partition_and_no_other(data, kind):
    schema = TableSchema((Field("p", kind), Field("x", "long")))
    mine = data.draw(st.none() | VALUES[kind])
    other = data.draw(st.none() | VALUES[kind])
    where = where_of(("p",), (mine,), schema)
    if where is None:
        assert kind == "double"  # exponents are not in the grammar
        return
    selects = bind(parse_where(where), schema, ("p",)).selects
    assert selects({"p": mine})
    same = (mine or None) == (other or None)
    if kind == "double" and mine is not None and other is not None:
        same = float(mine) == float(other)
    assert selects({"p": other}) == same


# --- totals ----------------------------------------------------------------------------------------


def sized(name: str, size: int | None) -> Remove:
    return Remove(path=name, data_change=False, deletion_timestamp=NOW_MS, size=size)


def test_totals_follow_entries():
    found = FileTotals()
    found.apply(entry(1, adds=[add("a", size=5), add("b", size=7)]))
    found.apply(entry(2, adds=[add("c", size=12)], removes=[sized("a", 5), sized("b", 7)]))
    assert (found.files, found.size_bytes, found.is_exact) == (1, 12, True)


@pytest.mark.parametrize(
    "vague",
    [
        entry(2, removes=[sized("a", None)]),
        entry(2, adds=[msgspec.structs.replace(add("a", size=5), data_change=False)]),
    ],
    ids=["a remove without a size", "statistics of a file that is there"],
)
def test_totals_say_when_they_are_not_exact(vague):
    found = FileTotals()
    found.apply(entry(1, adds=[add("a", size=5)]))
    found.apply(vague)
    found.apply(entry(3, adds=[add("b", size=5)]))
    assert not found.is_exact


# --- cron -----------------------------------------------------------------------------------------


def at(text: str) -> int:
    return int(dt.datetime.fromisoformat(text + "+00:00").timestamp() * 1000)


@pytest.mark.parametrize(
    ("expression", "after", "now", "wanted"),
    [
        ("* * * * *", "2026-11-24T10:00:30", "2026-11-24T10:00:59", None),
        ("* * * * *", "2026-11-24T10:00:30", "2026-11-24T10:01:00", "2026-11-24T10:01:00"),
        ("*/15 * * * *", "2026-11-24T10:00:00", "2026-11-24T10:59:00", "2026-11-24T10:45:00"),
        ("0 3 * * *", "2026-11-23T04:00:00", "2026-11-24T10:00:00", "2026-11-24T03:00:00"),
        ("0 3 * * *", "2026-11-24T03:00:00", "2026-11-24T10:00:00", None),
        ("30 1-3/2 * * *", "2026-11-24T00:00:00", "2026-11-24T02:45:00", "2026-11-24T01:30:00"),
        ("0 0 * * 7", "2026-11-21T00:00:00", "2026-11-22T12:00:00", "2026-11-22T00:00:00"),
        ("0 0 * * 0", "2026-11-21T00:00:00", "2026-11-22T12:00:00", "2026-11-22T00:00:00"),
        ("0 0 13 * 2", "2026-11-23T00:00:00", "2026-11-24T12:00:00", "2026-11-24T00:00:00"),
        ("0 0 13 * *", "2026-11-23T00:00:00", "2026-11-24T12:00:00", None),
        ("0 0 24 12 *", "2026-11-23T00:00:00", "2026-11-24T12:00:00", None),
        ("5,10 * * * *", "2026-11-24T10:00:00", "2026-11-24T10:07:00", "2026-11-24T10:05:00"),
    ],
)
def test_the_newest_minute_that_an_expression_names(expression, after, now, wanted):
    assert cron_due(expression, at(after), at(now)) == (wanted and at(wanted))


def test_a_time_missed_long_ago_is_not_caught_up():
    assert cron_due("0 3 1 * *", at("2026-01-01T00:00:00"), at("2026-11-24T10:00:00")) is None
