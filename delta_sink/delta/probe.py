"""The proof, at start, that a store lets only one of two writers create an object."""

from __future__ import annotations

from delta_sink.errors import ObjectMissing, StoreRefused, StoreUnavailable
from delta_sink.ports import Exists, ObjectStore

PROBE_PATH = "_delta_sink/probe"
"""Always the same object, never deleted: writers need no right to delete."""

_BODIES = (
    b"delta-sink proves with this object that the store refuses to create it twice\n",
    b"this text must never be stored: the object was there\n",
)


def probe_conditional_put(store: ObjectStore) -> None:
    """Return if the store keeps an object that a second `put_if_absent` would replace.

    Four requests, whether the object is there from an earlier start or not. The second PUT has
    another body than the object, so that a store which says "exists" and overwrites it all the
    same is noticed too. Any number of workers may do this at once.

    Raises:
        StoreRefused: the store does not honour the condition; two workers could both commit.
        StoreUnavailable: no usable answer. Call again.
    """
    store.put_if_absent(PROBE_PATH, _BODIES[0])
    before = _read(store)
    other = _BODIES[1] if before == _BODIES[0] else _BODIES[0]
    answer = store.put_if_absent(PROBE_PATH, other)
    after = _read(store)
    if answer != Exists() or after != before:
        raise StoreRefused(
            f"the store does not honour conditional PUT (If-None-Match): it {_did(answer)}"
            f" {PROBE_PATH} a second time, so two workers could both commit one version;"
            " use a store that does, or the log store dynamodb"
        )


def _did(answer: object) -> str:
    return "refused but replaced" if answer == Exists() else "created"


def _read(store: ObjectStore) -> bytes:
    try:
        return bytes(store.get(PROBE_PATH).data)
    except ObjectMissing as error:
        # Its PUT met another one that was not finished (409 on S3).
        raise StoreUnavailable(f"{PROBE_PATH} is not there yet after its PUT") from error
