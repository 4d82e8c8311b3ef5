"""A folder as an object store: whole objects, one winner a name, durable before the call returns.

Theory of operation. Bytes go to a file of their own under `_delta_sink/tmp`, which no Delta reader
looks into and no listing of ours shows. Only a complete and flushed file gets its real name:
`rename` for names that nobody else uses, `link` where one writer must win (the kernel refuses a
name that is taken). Then the folder is flushed, and every folder above it that this process has
not flushed yet: another process may have made them a moment ago and not have come to it. A process
that dies leaves a file in the temporary folder and nothing else.

*Exists* is answered only after the folder is flushed too: a caller that finds its own commit there
counts it as done, so it must not go away with the power.
"""

# The commit path joins strings: making Paths would cost more than some of the calls do.
# ruff: noqa: PTH100, PTH103, PTH105, PTH108, PTH112, PTH116, PTH120

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from uuid import uuid4

from delta_sink.errors import ObjectMissing, StoreRefused, StoreUnavailable
from delta_sink.ports import Created, Exists, ObjectInfo, StoredObject

TEMPORARY_FOLDER = "_delta_sink/tmp"
FLUSHED_FOLDERS_MAX = 10_000
"""How many folders are remembered as flushed; past it they are flushed once more."""

_SENTENCES = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "this user may not do that",
    errno.EPERM: "this user, or this file system, does not allow it",
    errno.ENOTSUP: "this file system has no hard links, which the one winner of a commit needs",
    errno.EMLINK: "this file system has no more hard links",
    errno.ENOTDIR: "a part of the path is a file",
    errno.EEXIST: "a part of the path is a file",  # from making folders; a link's is an answer
    errno.EISDIR: "the path is a folder",
    errno.ENAMETOOLONG: "the name is too long for this file system",
    errno.ELOOP: "the path goes round in symbolic links",
    errno.EFBIG: "the file is too large for this file system",
}
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_MISSING = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)


class LocalDisk:
    """An `ObjectStore` on the folder `root`, for any number of threads and processes.

    `fsync=False` leaves out every flush and nothing else: a power cut may then take acknowledged
    commits, a killed process still may not. Folders are made as they are needed, never removed.
    """

    def __init__(self, root: str, *, fsync: bool = True) -> None:
        self._root = os.path.abspath(root)
        self._fsync = fsync
        self._flushed: set[str] = set()

    def __repr__(self) -> str:
        return f"LocalDisk({self._root!r}, fsync={self._fsync})"

    def put(self, path: str, data: bytes | memoryview) -> str:
        """Store `data` under `path`, durably, in place of what may have been there.

        Raises:
            StoreUnavailable: an I/O error; the object may have landed.
            StoreRefused: disk full, read-only, no right; nothing landed.
        """
        target = self._full(path)
        temporary, e_tag = self._write_temporary(path, data)
        try:
            self._make_folder(os.path.dirname(target), path)
            with _answering(f"cannot put {path}"):
                os.replace(temporary, target)
        except BaseException:
            _remove(temporary)
            raise
        self._flush_after(path, target)
        return e_tag

    def put_if_absent(self, path: str, data: bytes | memoryview) -> Created | Exists:
        """Store `data` if nothing has that name: the kernel picks one winner.

        Raises:
            StoreUnavailable: an I/O error; the object may have landed. Send the same again.
            StoreRefused: disk full, read-only, no right, no hard links; nothing landed.
        """
        target = self._full(path)
        temporary, e_tag = self._write_temporary(path, data)
        try:
            self._make_folder(os.path.dirname(target), path)
            created = _link(temporary, target, path)
            self._flush_after(path, target)
        finally:
            _remove(temporary)
        return Created(e_tag) if created else Exists()

    def get(self, path: str) -> StoredObject:
        """Return the object. Raises ObjectMissing if there is none."""
        descriptor = self._open(path)
        try:
            with _answering(f"cannot get {path}"):
                status = os.fstat(descriptor)
                data = _read(descriptor, 0, status.st_size)
        finally:
            os.close(descriptor)
        return StoredObject(data, _e_tag(status))

    def get_range(self, path: str, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset` on. Raises ObjectMissing if there is none.

        Raises:
            StoreRefused: the object ends before that.
        """
        assert offset >= 0, offset
        assert length >= 0, length
        descriptor = self._open(path)
        try:
            with _answering(f"cannot get {path}"):
                data = _read(descriptor, offset, length)
        finally:
            os.close(descriptor)
        if len(data) != length:
            raise StoreRefused(
                f"cannot get {path}: wanted {length} bytes from {offset}, it has {len(data)} there"
            )
        return data

    def list(self, prefix: str, start_after: str | None = None) -> list[ObjectInfo]:
        """Return the objects below the folder `prefix` ("" is all), sorted as S3 sorts.

        That is by the UTF-8 bytes of the whole path. Files whose name is not UTF-8 are left out:
        no log can name them.
        """
        folder = prefix.strip("/")
        found: list[ObjectInfo] = []
        for path, entry in self._walk(folder, start_after or ""):
            try:
                with _answering(f"cannot list {path}"):
                    status = entry.stat(follow_symlinks=True)
            except ObjectMissing:  # removed since the folder was read
                continue
            if stat.S_ISREG(status.st_mode):
                modified_ms = status.st_mtime_ns // 1_000_000
                found.append(ObjectInfo(path, status.st_size, modified_ms, _e_tag(status)))
        # Code points sort as their UTF-8 bytes do.
        return sorted(found, key=lambda info: info.path)

    def delete(self, path: str) -> None:
        """Remove the object, durably; one that is not there is no error."""
        target = self._full(path)
        try:
            with _answering(f"cannot delete {path}"):
                os.unlink(target)
        except ObjectMissing:
            return
        if self._fsync:
            with _answering(f"cannot delete {path}", is_landed=True):
                _flush_folder(os.path.dirname(target))

    def _full(self, path: str) -> str:
        check_path(path)
        return f"{self._root}/{path}"

    def _write_temporary(self, path: str, data: bytes | memoryview) -> tuple[str, str]:
        """Write a flushed file in the temporary folder; return its name and its `e_tag`."""
        folder = f"{self._root}/{TEMPORARY_FOLDER}"
        temporary = f"{folder}/{uuid4().hex}"
        with _answering(f"cannot put {path}"):
            try:
                descriptor = os.open(temporary, _NEW_FILE, 0o666)
            except FileNotFoundError:
                os.makedirs(folder, exist_ok=True)
                descriptor = os.open(temporary, _NEW_FILE, 0o666)
            try:
                _write(descriptor, data)
                if self._fsync:
                    _flush(descriptor)
                return temporary, _e_tag(os.fstat(descriptor))
            except BaseException:
                _remove(temporary)
                raise
            finally:
                os.close(descriptor)

    def _make_folder(self, folder: str, path: str) -> None:
        if not os.path.isdir(folder):
            self._flushed.discard(folder)
            with _answering(f"cannot put {path}"):
                os.makedirs(folder, exist_ok=True)

    def _flush_after(self, path: str, target: str) -> None:
        """Flush the folder of `target` and those above it that were not flushed yet.

        The object has its name by now, so every failure leaves the outcome unknown.
        """
        if self._fsync:
            with _answering(f"cannot flush the folder of {path}", is_landed=True):
                self._flush_folders(os.path.dirname(target))

    def _flush_folders(self, folder: str) -> None:
        _flush_folder(folder)
        made: list[str] = []
        while folder not in self._flushed and folder != "/":
            made.append(folder)
            folder = os.path.dirname(folder)
            # Above the table, a folder that this user may not open is not one that it made.
            with nullcontext() if self._is_inside(folder) else suppress(PermissionError):
                _flush_folder(folder)
        if len(self._flushed) > FLUSHED_FOLDERS_MAX:
            self._flushed.clear()
        self._flushed.update(made)

    def _is_inside(self, folder: str) -> bool:
        return folder == self._root or folder.startswith(f"{self._root}/")

    def _open(self, path: str) -> int:
        target = self._full(path)
        with _answering(f"cannot get {path} in {self._root}"):
            descriptor = os.open(target, os.O_RDONLY | os.O_CLOEXEC)
            if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                os.close(descriptor)
                raise IsADirectoryError(errno.EISDIR, "is a folder")
            return descriptor

    def _walk(self, folder: str, start_after: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
        """Yield the files above `start_after`; folders that end before it are not read."""
        waiting = [folder]
        while waiting:
            folder = waiting.pop()
            if folder == TEMPORARY_FOLDER:
                continue
            for entry in self._entries(folder):
                path = f"{folder}/{entry.name}" if folder else entry.name
                if not _is_utf8(entry.name):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    if f"{path}/" > start_after or start_after.startswith(f"{path}/"):
                        waiting.append(path)
                elif path > start_after:
                    yield path, entry

    def _entries(self, folder: str) -> tuple[os.DirEntry[str], ...]:
        full = self._full(folder) if folder else self._root
        try:
            with _answering(f"cannot list {folder or self._root}"), os.scandir(full) as entries:
                return tuple(entries)
        except ObjectMissing:
            return ()


def check_path(path: str) -> None:
    """Assert that `path` stays inside of the table: relative, no empty part, no `.`, no `..`."""
    assert not any(part in ("", ".", "..") for part in path.split("/")), f"not a path: {path!r}"
    assert "\0" not in path, f"not a path: {path!r}"


@contextmanager
def _answering(what: str, *, is_landed: bool = False) -> Iterator[None]:
    """Turn every OSError in the block into what the port says.

    `is_landed`: the object may be there already, so no error is a definite no.
    """
    try:
        yield
    except OSError as error:
        reason = _SENTENCES.get(error.errno or 0)
        sentence = f"{what}: {reason or error.strerror or error} ({_errno_name(error)})"
        if is_landed:
            raise StoreUnavailable(sentence) from error
        if error.errno in _MISSING and not what.startswith("cannot put"):
            raise ObjectMissing(sentence) from error
        raise (StoreRefused if reason else StoreUnavailable)(sentence) from error


def _errno_name(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, "no errno")


def _link(temporary: str, target: str, path: str) -> bool:
    """Give the file its name; return False if another file has it."""
    with _answering(f"cannot put {path}"):
        try:
            os.link(temporary, target)
            return True
        except OSError as error:
            if _is_same_file(temporary, target, path):
                return True
            if error.errno == errno.EEXIST:
                return False
            raise


def _is_same_file(temporary: str, target: str, path: str) -> bool:
    """Return whether the name leads to our own file: the link was made although it failed.

    Some network file systems repeat a request whose answer was lost, and report the second try.
    """
    with _answering(f"cannot say what became of {path}", is_landed=True):
        ours = os.stat(temporary)
        try:
            theirs = os.stat(target)
        except FileNotFoundError:
            if ours.st_nlink > 1:
                raise
            return False
        return os.path.samestat(ours, theirs)


def _write(descriptor: int, data: bytes | memoryview) -> None:
    rest = memoryview(data).cast("B") if len(data) else memoryview(b"")
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _read(descriptor: int, offset: int, length: int) -> bytes:
    """Return the bytes, fewer where the file ends; one system call takes at most 2 GiB."""
    parts: list[bytes] = []
    while length > 0:
        part = os.pread(descriptor, length, offset)
        if not part:
            break
        parts.append(part)
        offset += len(part)
        length -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _flush(descriptor: int) -> None:
    if sys.platform == "darwin":
        import fcntl

        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)  # there, fsync stops at the drive's own cache
    else:
        os.fsync(descriptor)


def _flush_folder(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _flush(descriptor)
    finally:
        os.close(descriptor)


def _remove(temporary: str) -> None:
    """Remove a temporary file; one that stays is no harm, so nothing is raised."""
    with suppress(OSError):
        os.unlink(temporary)


def _e_tag(status: os.stat_result) -> str:
    return f"{status.st_ino:x}-{status.st_mtime_ns:x}-{status.st_size:x}"


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
