"""The lock stores: SQLite and DynamoDB."""

from __future__ import annotations

import pytest

from delta_sink.adapters.sqlite import SqliteLeases
from delta_sink.errors import FatalError, RetriableError
from delta_sink.ports import Item
from tests.contract.lease_contract import LeaseContract
from tests.contract.race import race_processes


class TestSqlite(LeaseContract):
    @pytest.fixture
    def leases(self, tmp_path):
        leases = SqliteLeases(str(tmp_path / "deep" / "locks.db"))
        yield leases
        leases.close()

    def test_it_is_there_after_a_restart(self, tmp_path):
        path = str(tmp_path / "locks.db")
        first = SqliteLeases(path)
        assert first.put(Item("a", {"n": 1}), None)
        first.close()
        second = SqliteLeases(path)
        assert second.get("a") == Item("a", {"n": 1})
        assert not second.put(Item("a", {"n": 2}), None)
        second.close()

    def test_two_connections_see_each_other(self, tmp_path):
        path = str(tmp_path / "locks.db")
        first, second = SqliteLeases(path), SqliteLeases(path)
        assert first.put(Item("a", {"n": 1}), None)
        assert second.put(Item("a", {"n": 2}), Item("a", {"n": 1}))
        assert first.get("a") == Item("a", {"n": 2})
        first.close()
        second.close()

    @pytest.mark.process
    def test_processes_race_and_one_wins(self, tmp_path):
        path = str(tmp_path / "locks.db")
        won = race_processes(_RACE_LEASES, path, processes=4, races=40)
        assert sorted(key for keys in won for key in keys) == sorted(f"k/{n}" for n in range(40))
        leases = SqliteLeases(path)
        for me, keys in enumerate(won):
            for key in keys:
                assert leases.get(key) == Item(key, {"owner": me})
        leases.close()

    def test_a_file_that_is_no_database_is_fatal(self, tmp_path):
        path = tmp_path / "locks.db"
        path.write_text("orders: this is no database, but long enough to be looked at" * 20)
        with pytest.raises(FatalError, match=r"locks\.db"):
            SqliteLeases(str(path))

    def test_a_folder_that_cannot_be_made_is_fatal(self, tmp_path):
        (tmp_path / "file").write_text("x")
        with pytest.raises(FatalError, match="lock file"):
            SqliteLeases(str(tmp_path / "file" / "locks.db"))
        with pytest.raises(FatalError, match="lock file"):
            SqliteLeases(str(tmp_path))

    def test_a_lock_held_by_another_is_retriable(self, tmp_path, monkeypatch):
        monkeypatch.setattr("delta_sink.adapters.sqlite.BUSY_TIMEOUT_MS", 50)
        path = str(tmp_path / "locks.db")
        leases, other = SqliteLeases(path), SqliteLeases(path)
        other._connection.execute("BEGIN EXCLUSIVE")
        with pytest.raises(RetriableError, match="locked"):
            leases.put(Item("a"), None)
        other._connection.execute("ROLLBACK")
        assert leases.put(Item("a"), None)
        leases.close()
        other.close()


_RACE_LEASES = """
from delta_sink.adapters.sqlite import SqliteLeases
from delta_sink.ports import Item
leases = SqliteLeases(place)
def attempt(me, number):
    return f"k/{number}" if leases.put(Item(f"k/{number}", {"owner": me}), None) else None
"""
