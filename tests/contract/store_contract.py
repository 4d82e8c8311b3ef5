"""What every `ObjectStore` must do, the fakes included: subclass `StoreContract`, give `store`."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from delta_sink.errors import ObjectMissing, StoreRefused
from delta_sink.ports import Created, Exists, ObjectStore

LARGE = bytes(range(256)) * (20 * 4096)  # 20 MB

PATHS = [
    "plain.json",
    "_delta_log/00000000000000000042.json",
    "_delta_sink/audit/7.json",
    "day=2026-11-24/city=São Paulo/part-0.parquet",
    "at=2026-11-24%2010%3A00%3A00/part.parquet",
    "name=a+b & c=d/part.parquet",
    "name=%25/part.parquet",
    "日本/🦊.bin",
    "a b/ c .txt",
]


class StoreContract:
    """The suite. `store` is an empty store; a slow one may lower `RACES`."""

    RACES = 30

    @pytest.fixture
    def store(self) -> ObjectStore:
        """Return an empty store."""
        raise NotImplementedError

    def test_put_then_get(self, store):
        e_tag = store.put("folder/a", b"one")
        found = store.get("folder/a")
        assert (bytes(found.data), found.e_tag) == (b"one", e_tag)

    def test_put_takes_a_view(self, store):
        store.put("a", memoryview(b"0123456789")[3:7])
        store.put_if_absent("b", memoryview(b"0123456789")[3:7])
        assert bytes(store.get("a").data) == b"3456"
        assert bytes(store.get("b").data) == b"3456"

    def test_put_again_replaces(self, store):
        store.put("a", b"one")
        store.put("a", b"other")
        assert bytes(store.get("a").data) == b"other"

    def test_e_tag_is_stable_and_tells_objects_apart(self, store):
        created = store.put_if_absent("a", b"one")
        assert isinstance(created, Created)
        other = store.put("b", b"two")
        assert created.e_tag
        assert created.e_tag != other
        assert store.get("a").e_tag == created.e_tag
        assert {info.path: info.e_tag for info in store.list("")} == {
            "a": created.e_tag,
            "b": other,
        }

    def test_put_if_absent_refuses_what_exists(self, store):
        assert isinstance(store.put_if_absent("log/1.json", b"first"), Created)
        assert store.put_if_absent("log/1.json", b"second") == Exists()
        assert store.put_if_absent("log/1.json", b"first") == Exists()
        assert bytes(store.get("log/1.json").data) == b"first"

    def test_put_if_absent_after_put_and_after_delete(self, store):
        store.put("a", b"one")
        assert store.put_if_absent("a", b"two") == Exists()
        store.delete("a")
        assert isinstance(store.put_if_absent("a", b"two"), Created)
        assert bytes(store.get("a").data) == b"two"

    def test_empty_object(self, store):
        store.put("empty", b"")
        assert isinstance(store.put_if_absent("other", b""), Created)
        assert bytes(store.get("empty").data) == b""
        assert bytes(store.get("other").data) == b""
        assert [info.size_bytes for info in store.list("")] == [0, 0]

    def test_large_object(self, store):
        assert isinstance(store.put_if_absent("large", LARGE), Created)
        assert bytes(store.get("large").data) == LARGE
        assert bytes(store.get_range("large", len(LARGE) - 300, 300)) == LARGE[-300:]
        assert store.put_if_absent("large", LARGE) == Exists()

    def test_large_object_by_put(self, store):
        store.put("large", LARGE)
        assert store.list("")[0].size_bytes == len(LARGE)
        assert bytes(store.get("large").data) == LARGE

    @pytest.mark.parametrize("path", PATHS)
    def test_every_path_comes_back_as_it_was(self, store, path):
        store.put(path, path.encode())
        assert [info.path for info in store.list("")] == [path]
        assert bytes(store.get(path).data) == path.encode()
        assert bytes(store.get_range(path, 0, 1)) == path.encode()[:1]
        assert store.put_if_absent(path, b"other") == Exists()
        store.delete(path)
        assert store.list("") == []

    def test_ranges(self, store):
        store.put("a", b"0123456789")
        assert bytes(store.get_range("a", 0, 10)) == b"0123456789"
        assert bytes(store.get_range("a", 4, 3)) == b"456"
        assert bytes(store.get_range("a", 9, 1)) == b"9"

    @pytest.mark.parametrize(("offset", "length"), [(8, 3), (10, 1), (50, 2)])
    def test_range_beyond_the_end_is_refused(self, store, offset, length):
        store.put("a", b"0123456789")
        with pytest.raises(StoreRefused, match="a"):
            store.get_range("a", offset, length)

    def test_missing(self, store):
        store.put("folder/a", b"one")
        for path in ("b", "folder", "folder/b", "folder/a/b"):
            with pytest.raises(ObjectMissing):
                store.get(path)
            with pytest.raises(ObjectMissing):
                store.get_range(path, 0, 1)

    def test_delete_twice(self, store):
        store.put("folder/a", b"one")
        store.put("folder/b", b"two")
        store.delete("folder/a")
        store.delete("folder/a")
        store.delete("never/was")
        assert [info.path for info in store.list("")] == ["folder/b"]

    def test_list_of_nothing(self, store):
        assert store.list("") == []
        assert store.list("_delta_log/") == []
        store.put("a", b"")
        assert store.list("b") == []

    def test_list_sorts_by_the_bytes_of_the_whole_path(self, store):
        paths = ["a/x", "a-b/x", "a", "aé", "a/b/c", "a.x", "b", "aZ", "a/🦊", "a/\uffee", "B"]
        paths.remove("a")  # a name cannot be a folder and a file on every store
        for path in paths:
            store.put(path, path.encode())
        found = store.list("")
        assert [info.path for info in found] == sorted(paths, key=str.encode)
        assert [info.size_bytes for info in found] == [len(info.path.encode()) for info in found]

    def test_list_is_of_a_folder(self, store):
        for path in ("log/1", "log/2", "log/sub/3", "log2/4", "other"):
            store.put(path, b"x")
        assert [info.path for info in store.list("log")] == ["log/1", "log/2", "log/sub/3"]
        assert store.list("log/") == store.list("log")
        assert [info.path for info in store.list("log/sub/")] == ["log/sub/3"]

    def test_list_starts_after(self, store):
        for number in range(12):
            store.put(f"_delta_log/{number:020d}.json", b"{}")
        store.put("_delta_log/_last_checkpoint", b"{}")
        store.put("day=1/a", b"")
        found = store.list("_delta_log/", f"_delta_log/{8:020d}.json")
        assert [info.path for info in found] == [
            *(f"_delta_log/{number:020d}.json" for number in (9, 10, 11)),
            "_delta_log/_last_checkpoint",
        ]
        # The name to start after need not exist; it may be a folder's, and lie in another folder.
        assert len(store.list("_delta_log/", f"_delta_log/{8:020d}")) == 5
        assert store.list("_delta_log/", "_delta_log/z") == []
        assert [info.path for info in store.list("", "_delta_log0")] == ["day=1/a"]
        assert [info.path for info in store.list("", "day=1")] == ["day=1/a"]
        assert [info.path for info in store.list("", "day=1/a")] == []

    def test_list_of_more_than_a_page(self, store):
        paths = [f"p/{number:05d}" for number in range(1_050)]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda path: store.put(path, b"x"), paths))
        assert [info.path for info in store.list("p")] == paths
        assert [info.path for info in store.list("p", paths[9])] == paths[10:]

    def test_list_tells_when(self, store):
        store.put("a", b"x")
        store.put("b", b"x")
        first, second = store.list("")
        assert 1_600_000_000_000 < first.modified_ms <= second.modified_ms

    def test_list_shows_what_was_acknowledged(self, store):
        def put_and_look(number: int) -> bool:
            path = f"log/{number:04d}"
            store.put_if_absent(path, b"x")
            return path in {info.path for info in store.list("log")}

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(put_and_look, range(64)))

    def test_threads_race_and_one_wins(self, store):
        contenders = 8
        barrier = threading.Barrier(contenders)

        def race(me: int) -> list[int]:
            won = []
            for number in range(self.RACES):
                barrier.wait(60)
                if isinstance(store.put_if_absent(f"log/{number:04d}", f"{me}".encode()), Created):
                    won.append(number)
            return won

        with ThreadPoolExecutor(contenders) as pool:
            won = list(pool.map(race, range(contenders)))
        assert sorted(number for numbers in won for number in numbers) == [*range(self.RACES)]
        for me, numbers in enumerate(won):
            for number in numbers:
                assert bytes(store.get(f"log/{number:04d}").data) == f"{me}".encode()

    def test_readers_never_see_half(self, store):
        body = b"0123456789abcdef" * 65_536  # 1 MiB
        stop = threading.Event()
        seen = []

        def read() -> None:
            while not stop.is_set():
                seen.extend(info.size_bytes for info in store.list("log"))
                try:
                    assert bytes(store.get("log/5").data) == body
                except ObjectMissing:
                    continue

        with ThreadPoolExecutor(2) as pool:
            readers = [pool.submit(read) for _ in range(2)]
            for number in range(8):
                store.put_if_absent(f"log/{number}", body)
                store.put(f"log/data-{number}", body)
            stop.set()
            for reader in readers:
                reader.result()
        assert set(seen) <= {len(body)}
