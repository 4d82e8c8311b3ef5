"""The probe finds every store on which two workers could both commit one version."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from delta_sink.adapters.localdisk import LocalDisk
from delta_sink.delta.probe import PROBE_PATH, probe_conditional_put
from delta_sink.errors import StoreRefused, StoreUnavailable
from delta_sink.ports import Created, Exists


@pytest.fixture
def disk(tmp_path):
    return LocalDisk(str(tmp_path), fsync=False)


class Changed:
    """The store `disk`, but for what a subclass changes."""

    def __init__(self, disk):
        self.disk = disk
        self.calls = []

    def put_if_absent(self, path, data):
        self.calls.append("put_if_absent")
        return self.disk.put_if_absent(path, data)

    def get(self, path):
        self.calls.append("get")
        return self.disk.get(path)

    def delete(self, path):
        raise AssertionError("a writer may have no right to delete")


class Ignores(Changed):
    """Creates whatever is there."""

    def put_if_absent(self, path, data):
        return Created(self.disk.put(path, data))


class CreatesWithoutReplacing(Changed):
    """Says created and keeps what was there."""

    def put_if_absent(self, path, data):
        self.disk.put_if_absent(path, data)
        return Created("tag")


class RefusesAndReplaces(Changed):
    """Says that it exists, and overwrites it all the same."""

    def put_if_absent(self, path, data):
        answer = self.disk.put_if_absent(path, data)
        if answer == Exists():
            self.disk.put(path, data)
        return answer


class SaysConflict(Changed):
    """Answers that another PUT is under way; nothing landed."""

    def put_if_absent(self, path, data):
        return Exists()


@pytest.mark.parametrize("starts", [1, 2, 5])
def test_a_good_store_passes_at_every_start(disk, starts):
    for _ in range(starts):
        store = Changed(disk)
        probe_conditional_put(store)
        assert len(store.calls) == 4
    assert [info.path for info in disk.list("")] == [PROBE_PATH]


def test_many_workers_at_once_pass(disk):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: probe_conditional_put(disk), range(64)))


@pytest.mark.parametrize("kind", [Ignores, CreatesWithoutReplacing, RefusesAndReplaces])
@pytest.mark.parametrize("was_there", [False, True])
def test_a_bad_store_is_refused_at_every_start(disk, kind, was_there):
    if was_there:
        probe_conditional_put(disk)
    for _ in range(3):
        with pytest.raises(StoreRefused, match="does not honour conditional PUT"):
            probe_conditional_put(kind(disk))


@pytest.mark.parametrize("kind", [Ignores, RefusesAndReplaces])
@pytest.mark.parametrize("tries", [1, 2, 3])
def test_a_store_that_was_mended_passes(disk, kind, tries):
    for _ in range(tries):
        with pytest.raises(StoreRefused):
            probe_conditional_put(kind(disk))
    probe_conditional_put(disk)


def test_a_conflict_without_an_object_proves_nothing(disk):
    with pytest.raises(StoreUnavailable, match="not there yet"):
        probe_conditional_put(SaysConflict(disk))
