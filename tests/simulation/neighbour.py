"""Another engine at a table that has maintenance: it appends, deletes, compacts and keeps house.

It keeps Delta's own rules and knows nothing of tags and fences. What it does lands at once.
"""

from __future__ import annotations

import json
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq

from tests.simulation import foreign
from tests.simulation.harness import Simulation
from tests.simulation.upkeep_judge import UpkeepOracle
from tests.unit.vectors import inline_vector, stored_vectors


class Neighbour:
    """The engine; what its functions return says whether there was anything to do."""

    def __init__(self, sim: Simulation, random: Random) -> None:
        assert isinstance(sim.oracle, UpkeepOracle)
        self._sim = sim
        self._oracle = sim.oracle
        self._random = random

    @property
    def has_table(self) -> bool:
        return self._oracle.version >= 0

    def _commit(self, *actions: dict) -> bool:
        self._oracle.is_foreign = True
        foreign.commit(self._sim, *actions)
        self._oracle.is_foreign = False
        return True

    def append(self) -> bool:
        """Add two rows of its own."""
        if not self.has_table:
            return False
        foreign.append(self._sim, self._oracle.entries)
        return True

    def delete(self) -> bool:
        """Delete one of its own rows by a deletion vector, the last of a file with the file."""
        mine = [path for path in self._oracle.files if path.startswith("theirs-")]
        if not mine:
            return False
        path = self._random.choice(mine)
        add = self._oracle.adds[path]
        stamp = {"dataChange": True, "deletionTimestamp": self._sim.world.wall_ms}
        remove = {"path": path, **stamp}
        if "deletionVector" in add:
            remove["deletionVector"] = add["deletionVector"]
            return self._commit({"remove": remove})
        at = self._random.randrange(2)
        vector = self._vector(at)
        self._oracle.vectors[str(vector["pathOrInlineDv"])] = {at}
        add = add | {"deletionVector": vector, "dataChange": True}
        return self._commit(*self._feature(), {"remove": remove}, {"add": add})

    def _vector(self, at: int) -> dict[str, object]:
        if self._random.random() < 0.5:
            return inline_vector([at])
        path, data, [vector] = stored_vectors([at], uuid=self._random.randbytes(16))
        self._sim.store.write(path, data)
        return vector

    def _feature(self) -> list[dict]:
        """Return what makes the table one that has deletion vectors, once."""
        now = self._oracle.protocol
        if "deletionVectors" in now.get("writerFeatures", ()):
            return []
        more = {*now.get("writerFeatures", ("appendOnly", "invariants")), "deletionVectors"}
        features = {"readerFeatures": ["deletionVectors"], "writerFeatures": sorted(more)}
        table = self._oracle.metadata
        on = table["configuration"] | {"delta.enableDeletionVectors": "true"}
        protocol = {"minReaderVersion": 3, "minWriterVersion": 7, **features}
        return [{"protocol": protocol}, {"metaData": table | {"configuration": on}}]

    def compact(self) -> bool:
        """Replace some of a table partition's oldest files by one, deletion vectors with them."""
        oracle, sim = self._oracle, self._sim
        there = [oracle.adds[path]["partitionValues"] for path in oracle.files]
        if not there:
            return False
        values = self._random.choice(there) if any(there) else {}
        mine = [path for path in oracle.files if oracle.adds[path]["partitionValues"] == values]
        chosen = mine[: self._random.choice([2, 5, 100])]
        if len(chosen) < 2:
            return False
        rows = [row for path in chosen for row in oracle.files[path]]
        add = foreign.write_rows(sim, f"compacted-{oracle.entries}.parquet", rows, values)
        removes = []
        for path in chosen:
            remove = {"path": path, "dataChange": False, "deletionTimestamp": sim.world.wall_ms}
            if "deletionVector" in oracle.adds[path]:
                remove["deletionVector"] = oracle.adds[path]["deletionVector"]
            removes.append({"remove": remove})
        return self._commit({"add": add | {"dataChange": False}}, *removes)

    def checkpoint(self) -> bool:
        """Write a checkpoint of the head with all that Delta wants in one."""
        oracle, store = self._oracle, self._sim.store
        path = f"_delta_log/{oracle.version:020d}.checkpoint.parquet"
        if not self.has_table or store.holds(path):
            return False
        table = {**oracle.metadata, "format": {"provider": "parquet", "options": []}}
        table["configuration"] = list(oracle.metadata.get("configuration", {}).items())
        rows = [{"protocol": oracle.protocol}, {"metaData": table}]
        rows += [{"txn": {"appId": a, "version": v}} for a, v in oracle.txns.items()]
        rows += [{"add": _flat(add) | {"dataChange": False}} for add in oracle.adds.values()]
        rows += [{"remove": _flat(remove)} for remove in oracle.removes]
        buffer = pa.BufferOutputStream()
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), buffer)
        oracle.is_foreign = True
        store.write(path, buffer.getvalue().to_pybytes())
        if self._random.random() < 0.7:
            hint = {"version": oracle.version, "size": len(rows)}
            store.write(foreign.LAST_CHECKPOINT, json.dumps(hint).encode())
        oracle.is_foreign = False
        return True

    def clean_up(self) -> int:
        """Remove log entries as the table's property allows; it may die on the way."""
        self._oracle.is_foreign = True
        entries_max = None if self._random.random() < 0.7 else self._random.randrange(1, 9)
        gone = foreign.clean_up(self._sim, entries_max=entries_max)
        self._oracle.is_foreign = False
        return len(gone)

    def vacuum(self) -> int:
        """Delete what has been unneeded for a week. Uploads that take a week are not its concern."""
        self._oracle.is_foreign = True
        deleted = foreign.vacuum(self._sim)
        self._oracle.is_foreign = False
        return deleted


def _flat(action: dict) -> dict:
    return action | {"partitionValues": list(action.get("partitionValues", {}).items())}


_MAP = pa.map_(pa.string(), pa.string())
_VECTOR = pa.struct(
    {
        "storageType": pa.string(),
        "pathOrInlineDv": pa.string(),
        "offset": pa.int32(),
        "sizeInBytes": pa.int32(),
        "cardinality": pa.int64(),
    }
)
_FILE = {"path": pa.string(), "partitionValues": _MAP, "size": pa.int64()}
_TEXTS = pa.list_(pa.string())
SCHEMA = pa.schema(
    {
        "txn": foreign.CHECKPOINT_SCHEMA.field("txn").type,
        "protocol": pa.struct(
            {
                "minReaderVersion": pa.int32(),
                "minWriterVersion": pa.int32(),
                "readerFeatures": _TEXTS,
                "writerFeatures": _TEXTS,
            }
        ),
        "metaData": foreign.CHECKPOINT_SCHEMA.field("metaData").type,
        "add": pa.struct(
            {
                **_FILE,
                "modificationTime": pa.int64(),
                "dataChange": pa.bool_(),
                "stats": pa.string(),
                "deletionVector": _VECTOR,
            }
        ),
        "remove": pa.struct(
            {
                **_FILE,
                "deletionTimestamp": pa.int64(),
                "dataChange": pa.bool_(),
                "extendedFileMetadata": pa.bool_(),
                "deletionVector": _VECTOR,
            }
        ),
    }
)
