"""What every `LeaseStore` must do, the fakes included: subclass `LeaseContract`, give `leases`."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from delta_sink.ports import Item, LeaseStore


class LeaseContract:
    """The suite. `leases` is an empty store."""

    RACES = 25

    @pytest.fixture
    def leases(self) -> LeaseStore:
        """Return an empty store."""
        raise NotImplementedError

    def test_nothing_there(self, leases):
        assert leases.get("a") is None
        assert leases.scan("") == []

    def test_put_then_get(self, leases):
        item = Item(
            "lease/é/🦊", {"owner": "x", "token": 7, "released": False, "é": "日本", "e": ""}
        )
        assert leases.put(item, None)
        found = leases.get("lease/é/🦊")
        assert found == item
        assert found.attributes["released"] is False
        assert type(found.attributes["token"]) is int

    def test_no_attributes(self, leases):
        assert leases.put(Item("a"), None)
        assert leases.get("a") == Item("a")
        assert leases.put(Item("a", {"n": 1}), Item("a"))

    @pytest.mark.parametrize("number", [0, -1, 2**53 + 1, 2**63, -(10**30)])
    def test_whole_numbers_of_any_size(self, leases, number):
        item = Item("a", {"n": number})
        assert leases.put(item, None)
        assert leases.get("a") == item
        assert leases.put(Item("a", {"n": number + 1}), item)
        assert leases.get("a") == Item("a", {"n": number + 1})

    def test_put_expecting_nothing(self, leases):
        assert leases.put(Item("a", {"n": 1}), None)
        assert not leases.put(Item("a", {"n": 2}), None)
        assert not leases.put(Item("a", {"n": 1}), None)
        assert leases.get("a") == Item("a", {"n": 1})

    def test_put_expecting_what_is_not_there(self, leases):
        assert not leases.put(Item("a", {"n": 2}), Item("a", {"n": 1}))
        assert leases.get("a") is None

    @pytest.mark.parametrize(
        "expected",
        [
            {"n": 2, "s": "x"},
            {"n": 1},
            {"n": 1, "s": "x", "more": 0},
            {"n": 1, "s": "y"},
            {"n": "1", "s": "x"},
            {},
        ],
    )
    def test_expected_is_compared_as_a_whole(self, leases, expected):
        stored = Item("a", {"n": 1, "s": "x"})
        assert leases.put(stored, None)
        assert not leases.put(Item("a", {"n": 9}), Item("a", expected))
        assert leases.get("a") == stored
        assert leases.put(Item("a", {"n": 9}), Item("a", {"s": "x", "n": 1}))
        assert leases.get("a") == Item("a", {"n": 9})

    def test_true_is_not_one(self, leases):
        assert leases.put(Item("a", {"n": 1}), None)
        assert not leases.put(Item("a", {"n": 9}), Item("a", {"n": True}))
        assert leases.put(Item("a", {"n": True}), Item("a", {"n": 1}))
        assert not leases.put(Item("a", {"n": 9}), Item("a", {"n": 1}))
        assert leases.get("a").attributes["n"] is True

    def test_put_replaces_every_attribute(self, leases):
        first = Item("a", {"old": 1, "kept": 2})
        assert leases.put(first, None)
        assert leases.put(Item("a", {"kept": 2}), first)
        assert leases.get("a") == Item("a", {"kept": 2})

    def test_scan_by_prefix_in_order(self, leases):
        keys = ["t/lease/2", "t/lease/10", "t/state", "t/lease%", "u/lease/1", "t/lease/é", "T/x"]
        for number, key in enumerate(keys):
            assert leases.put(Item(key, {"n": number}), None)
        assert [item.key for item in leases.scan("")] == sorted(keys)
        found = leases.scan("t/lease/")
        assert [item.key for item in found] == ["t/lease/10", "t/lease/2", "t/lease/é"]
        assert [item.attributes["n"] for item in found] == [1, 0, 5]
        assert leases.scan("none") == []

    def test_scan_of_many(self, leases):
        for number in range(120):
            assert leases.put(Item(f"k/{number:03d}", {"text": "x" * 12_000}), None)
        assert [item.key for item in leases.scan("k/")] == [f"k/{n:03d}" for n in range(120)]

    def test_threads_race_for_new_keys(self, leases):
        won = self._race(lambda me, number: leases.put(Item(f"k/{number}", {"owner": me}), None))
        assert sorted(number for numbers in won for number in numbers) == [*range(self.RACES)]
        for me, numbers in enumerate(won):
            for number in numbers:
                assert leases.get(f"k/{number}") == Item(f"k/{number}", {"owner": me})

    def test_threads_race_to_replace(self, leases):
        for number in range(self.RACES):
            assert leases.put(Item(f"k/{number}", {"owner": -1}), None)

        def replace(me: int, number: int) -> bool:
            before = Item(f"k/{number}", {"owner": -1})
            return leases.put(Item(f"k/{number}", {"owner": me}), before)

        won = self._race(replace)
        assert sorted(number for numbers in won for number in numbers) == [*range(self.RACES)]

    def test_threads_count_together(self, leases):
        assert leases.put(Item("counter", {"n": 0}), None)

        def add(_: int) -> None:
            done = 0
            while done < 15:
                before = leases.get("counter")
                done += leases.put(Item("counter", {"n": before.attributes["n"] + 1}), before)

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(add, range(4)))
        assert leases.get("counter") == Item("counter", {"n": 60})

    def _race(self, attempt) -> list[list[int]]:
        """Let eight threads try each number at the same time; return what each one won."""
        contenders = 8
        barrier = threading.Barrier(contenders)

        def run(me: int) -> list[int]:
            won = []
            for number in range(self.RACES):
                barrier.wait(60)
                if attempt(me, number):
                    won.append(number)
            return won

        with ThreadPoolExecutor(contenders) as pool:
            return list(pool.map(run, range(contenders)))
