"""A schema registry that all hosts of a world share.

What may fail: `registry.read_failed` and outages (`wire.outage`). What may not: an id never
gives another schema than before, and a registered schema is found by the next request.
"""

from __future__ import annotations

from delta_sink.errors import DataError, RetriableError
from delta_sink.ports import RegistrySchema
from delta_sink.testing.host import Host
from delta_sink.testing.wire import Wire
from delta_sink.testing.world import World


class FakeRegistry:
    """The registry itself. Hosts talk to it by `client`.

    Attributes:
        wire: latency and outages of its requests.
    """

    def __init__(self, world: World) -> None:
        self.wire = Wire(world, "registry", RetriableError)
        self.schemas: dict[int, RegistrySchema] = {}

    def register(self, schema: RegistrySchema) -> None:
        """Let the registry know the schema by its id, which must be new."""
        known = self.schemas.setdefault(schema.schema_id, schema)
        assert known == schema, f"schema id {schema.schema_id} is taken"

    def client(self, host: Host) -> FakeRegistryClient:
        """Return the registry as this host sees it: its `SchemaRegistry`."""
        return FakeRegistryClient(self, host)


class FakeRegistryClient:
    """`SchemaRegistry` of one host."""

    def __init__(self, registry: FakeRegistry, host: Host) -> None:
        self._registry = registry
        self._host = host

    def schema(self, schema_id: int) -> RegistrySchema:
        """Return the schema of this id."""

        def answer() -> RegistrySchema:
            found = self._registry.schemas.get(schema_id)
            if found is None:
                sentence = f"the registry knows no schema {schema_id}"
                raise DataError(reason="unknown_schema", message=sentence, redacted=sentence)
            return found

        return self._registry.wire.read("registry.schema", schema_id, answer)
