"""Locks and registrations over a LeaseStore. They save work; the log alone keeps data safe."""

from __future__ import annotations

from delta_sink.errors import SourceRefused
from delta_sink.ports import Item, LeaseStore

REGISTER_TRIES_MAX = 10


def register_sink(leases: LeaseStore, *, sink: str, table_uri: str) -> None:
    """Return once the name `sink` stands for the table `table_uri` and for no other.

    Two sinks of one name share a consumer group: on two tables each would see half of the topic.

    Raises:
        SourceRefused: the name is another table's.
        RetriableError: the lock store did not answer. Locks are a courtesy: go on without.
    """
    key = f"sink/{sink}"
    mine = Item(key, {"table": table_uri})
    for _ in range(REGISTER_TRIES_MAX):
        found = leases.get(key)
        if found is None:
            if leases.put(mine, None):
                return
            continue
        if found.attributes.get("table") != table_uri:
            raise SourceRefused(
                f"the name '{sink}' is registered for the table "
                f"{found.attributes.get('table')}, the configuration says {table_uri}: two "
                f"tables under one name would each get half of the topic; choose another name, "
                f"or run `delta-sink init --move` if the table was moved"
            )
        return
    raise SourceRefused(f"the name '{sink}' could not be registered: others keep changing {key}")


def move_sink(leases: LeaseStore, *, sink: str, table_uri: str) -> None:
    """Return once the name `sink` stands for `table_uri`, whatever it stood for before."""
    key = f"sink/{sink}"
    for _ in range(REGISTER_TRIES_MAX):
        if leases.put(Item(key, {"table": table_uri}), leases.get(key)):
            return
    raise SourceRefused(f"the name '{sink}' could not be registered: others keep changing {key}")
