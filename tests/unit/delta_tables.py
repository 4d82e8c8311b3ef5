"""What tests of data files share: random tables, a log written by hand, and its reader."""

import datetime as dt
import itertools
import json
from collections import Counter
from decimal import Decimal

import pyarrow as pa
from deltalake import DeltaTable, QueryBuilder
from hypothesis import strategies as st

from delta_sink.delta.hive import add_path
from delta_sink.delta.parquet import encode_files
from delta_sink.delta.schema import ArrayType, Field, MapType, StructType, TableSchema
from delta_sink.delta.schema import Decimal as DecimalType

UTC = dt.UTC


def ids():
    counter = itertools.count()
    return lambda: f"{next(counter):032x}"


def encode(layout, *tables, tag=7):
    return encode_files(list(tables), layout, tag=tag, unique_id=ids())


def rows_of(schema, rows):
    return pa.Table.from_pylist(rows, schema=schema.arrow)


def write_table(folder, layout, files):
    """Put `files` into `folder` with one log entry written by hand; return deltalake's table."""
    ntz = ["timestampNtz"] if layout.schema.has_timestamp_ntz else []
    metadata = {
        "id": "t",
        "format": {"provider": "parquet", "options": {}},
        "schemaString": layout.schema.to_json(),
        "partitionColumns": list(layout.partition_by),
        "configuration": {},
        "createdTime": 0,
    }
    protocol = {"minReaderVersion": 3, "minWriterVersion": 7}
    actions = [
        {"protocol": {**protocol, "readerFeatures": ntz, "writerFeatures": ntz}},
        {"metaData": metadata},
    ]
    for file in files:
        (folder / file.path).parent.mkdir(parents=True, exist_ok=True)
        (folder / file.path).write_bytes(file.data)
        add = {
            "path": add_path(file.path),
            "partitionValues": file.partition_values,
            "size": file.size_bytes,
            "modificationTime": 0,
            "dataChange": True,
            "stats": file.stats,
        }
        actions.append({"add": add})
    (folder / "_delta_log").mkdir()
    entry = folder / "_delta_log" / f"{0:020d}.json"
    lines = [json.dumps(a, ensure_ascii=False) for a in actions]
    entry.write_bytes("\n".join(lines).encode())
    return DeltaTable(str(folder))


def query(table, sql):
    return pa.table(QueryBuilder().register("t", table).execute(sql).read_all())


def canonical(value):
    """A row as something that compares: NaN to itself, -0.0 apart from 0.0."""
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, dict):
        return tuple((k, canonical(v)) for k, v in value.items())
    if isinstance(value, list | tuple):
        return tuple(canonical(v) for v in value)
    return value


def multiset(table):
    return Counter(canonical(row) for row in table.to_pylist())


# --- random tables ------------------------------------------------------------------------------

texts = st.text(max_size=6) | st.text('a\ud7ff\U0010ffff\ue000é😀\0"', min_size=28, max_size=40)
VALUES = {
    "string": texts,
    "long": st.integers(-(2**63), 2**63 - 1),
    "integer": st.integers(-(2**31), 2**31 - 1),
    "short": st.integers(-(2**15), 2**15 - 1),
    "byte": st.integers(-128, 127),
    "double": st.floats() | st.sampled_from([0.0, -0.0]),
    "float": st.floats(width=32) | st.sampled_from([0.0, -0.0]),
    "boolean": st.booleans(),
    "binary": st.binary(max_size=5),
    "date": st.dates(),
    "timestamp": st.datetimes(timezones=st.just(UTC)),
    "timestamp_ntz": st.datetimes(),
}


def values_of(data_type):
    match data_type:
        case DecimalType(precision, scale):
            limit = 10**precision - 1
            numbers = st.integers(-limit, limit)
            strategy = numbers.map(
                lambda n: Decimal((n < 0, Decimal(abs(n)).as_tuple().digits, -scale))
            )
        case ArrayType(element):
            strategy = st.lists(values_of(element), max_size=3)
        case MapType(key, value):
            keys = values_of(key).filter(lambda k: k is not None)
            strategy = st.dictionaries(keys, values_of(value), max_size=3).map(
                lambda d: list(d.items())
            )
        case StructType(fields):
            strategy = st.fixed_dictionaries({f.name: values_of(f.type) for f in fields})
        case name:
            strategy = VALUES[name]
    return st.none() | strategy


simple = st.sampled_from(sorted(VALUES)) | st.sampled_from([DecimalType(38, 10), DecimalType(5, 0)])
structs = st.lists(simple, min_size=1, max_size=3).map(
    lambda kinds: StructType(tuple(Field(f"f{i}", kind) for i, kind in enumerate(kinds)))
)
types = simple | structs | st.builds(ArrayType, simple) | st.just(MapType("string", "long"))
types |= structs.map(lambda s: StructType((Field("deep", s), Field("flat", "long"))))


@st.composite
def tables(draw):
    kinds = draw(st.lists(types, min_size=1, max_size=4))
    schema = TableSchema(tuple(Field(f"c{i}", kind) for i, kind in enumerate(kinds)))
    row = st.fixed_dictionaries({f.name: values_of(f.type) for f in schema.fields})
    rows = draw(st.lists(row, min_size=1, max_size=12))
    return schema, rows_of(schema, rows)
