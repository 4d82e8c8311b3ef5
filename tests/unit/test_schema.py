"""Schemas: the log's JSON both ways, the user's columns with every problem, two schemas compared."""

import json

import pyarrow as pa
import pytest
from deltalake import Schema
from hypothesis import given, settings
from hypothesis import strategies as st

from delta_sink.delta.schema import (
    METADATA_FIELDS,
    ArrayType,
    Decimal,
    Derived,
    Field,
    MapType,
    StructType,
    TableSchema,
    arrow_type,
    differences,
    parse_columns,
    type_text,
)
from delta_sink.delta.types import NESTING_MAX, PRIMITIVES
from delta_sink.errors import TableRefused

ORDER = [
    {"name": "order_id", "type": "long", "nullable": False},
    {"name": "amount", "type": "decimal(12,2)", "comment": "gross"},
    {"name": "placed_at", "type": "timestamp"},
    {
        "name": "lines",
        "type": {
            "array": {
                "struct": [
                    {"name": "sku", "type": "string"},
                    {"name": "quantity", "type": "integer", "nullable": False},
                ]
            }
        },
    },
    {"name": "tags", "type": {"map": {"key": "string", "value": "double"}}},
    {"name": "day", "type": "date", "from": "date(placed_at)"},
    {"name": "hour", "type": "integer", "from": " hour( placed_at ) "},
]

simple_types = st.sampled_from(sorted(PRIMITIVES)) | st.builds(
    lambda precision, part: Decimal(precision, part % (precision + 1)),
    st.integers(1, 38),
    st.integers(0, 38),
)
# The C interface through which deltalake hands over Arrow has no NUL in names.
names = st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1, max_size=8)


def fields_of(types):
    return st.lists(
        st.builds(Field, names, types, st.booleans(), st.just({}) | st.just({"comment": "ü"})),
        min_size=1,
        max_size=4,
        unique_by=lambda f: f.name,
    ).map(tuple)


all_types = st.recursive(
    simple_types,
    lambda inner: (
        st.builds(ArrayType, inner, st.booleans())
        | st.builds(MapType, inner, inner, st.booleans())
        | st.builds(StructType, fields_of(inner))
    ),
    max_leaves=6,
)
schemas = st.builds(TableSchema, fields_of(all_types))


@given(schemas)
@settings(max_examples=150, deadline=None)
def test_json_and_back_is_the_same_schema(schema):
    assert TableSchema.from_json(schema.to_json()) == schema


@given(schemas)
@settings(max_examples=100, deadline=None)
def test_an_independent_reader_sees_the_same_schema(schema):
    theirs = Schema.from_json(schema.to_json())
    assert json.loads(theirs.to_json()) == json.loads(schema.to_json())
    assert pa.schema(theirs.to_arrow()).equals(schema.arrow, check_metadata=False)


def test_a_schema_that_deltalake_wrote_is_read():
    arrow = pa.schema(
        [
            pa.field("id", pa.int64(), nullable=False),
            pa.field("l", pa.list_(pa.struct([pa.field("x", pa.decimal128(38, 10))]))),
            pa.field("m", pa.map_(pa.string(), pa.timestamp("us", tz="UTC"))),
            pa.field("b", pa.binary()),
        ]
    )
    schema = TableSchema.from_json(Schema.from_arrow(arrow).to_json())
    assert schema.names == ("id", "l", "m", "b")
    assert schema.field("id") == Field("id", "long", nullable=False)
    assert schema.field("l").type == ArrayType(StructType((Field("x", Decimal(38, 10)),)))
    assert schema.field("m").type == MapType("string", "timestamp")
    with pytest.raises(KeyError):
        schema.field("ID")


def test_field_names_of_lists_and_maps_are_those_that_files_have():
    kind = arrow_type(ArrayType(MapType("string", "long", value_contains_null=False)))
    assert kind.value_field.name == "element"
    assert kind.value_type.key_field == pa.field("key", pa.string(), nullable=False)
    assert kind.value_type.item_field == pa.field("value", pa.int64(), nullable=False)


def test_only_a_zoneless_column_needs_the_table_feature():
    deep = ArrayType(StructType((Field("x", MapType("string", "timestamp_ntz")),)))
    assert TableSchema((Field("a", "long"), Field("b", deep))).has_timestamp_ntz
    assert not TableSchema((Field("a", "timestamp"), Field("b", Decimal(3, 1)))).has_timestamp_ntz


def column_json(data_type, metadata=None):
    column = {"name": "c", "type": data_type, "nullable": True, "metadata": metadata or {}}
    return json.dumps({"type": "struct", "fields": [column]})


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (column_json("variant"), "column 'c': the type is variant, which this sink does not write"),
        (column_json("void"), "column 'c': the type is void"),
        (column_json("null"), "column 'c': the type is void"),
        (column_json("interval day to second"), "the type is interval day to second"),
        (column_json("decimal(39,2)"), r"the type is decimal\(39,2\)"),
        (column_json("decimal(3,4)"), r"the type is decimal\(3,4\)"),
        (
            column_json({"type": "array", "elementType": "variant", "containsNull": True}),
            "column 'c'.element: the type is variant",
        ),
        (column_json({"type": "udt", "class": "x"}), "a type 'udt'"),
        (column_json(7), "holds int, wanted a type"),
        (column_json("long", {"delta.invariants": "{}"}), "column 'c': it has an invariant"),
        (column_json("long", {"delta.generationExpression": "a+1"}), "a generation expression"),
        (column_json("long", {"delta.identity.start": 1}), "identity values"),
        (column_json("long", {"delta.columnMapping.id": 1}), "column mapping"),
        (column_json("long", {"delta.typeChanges": []}), "type widening"),
        (column_json("long", {"CURRENT_DEFAULT": "1"}), "a default value"),
        ('"long"', "the table's schema is long, wanted a struct"),
        ('{"type":"struct","fields":[{"type":"long"}]}', "a field without name or type"),
        ("{", "not readable JSON"),
        ("[" * 100_000, "not readable JSON"),
    ],
)
def test_what_we_do_not_write_is_refused_with_a_sentence(text, sentence):
    with pytest.raises(TableRefused, match=sentence):
        TableSchema.from_json(text)


def test_endless_nesting_is_refused():
    kind = "long"
    for _ in range(NESTING_MAX + 1):
        kind = {"type": "array", "elementType": kind, "containsNull": True}
    with pytest.raises(TableRefused, match="nested deeper"):
        TableSchema.from_json(column_json(kind))


def test_type_text_is_what_people_write():
    kind = ArrayType(
        StructType((Field("a", Decimal(12, 2)), Field("b", MapType("string", "long"))))
    )
    assert type_text(kind) == "array<struct<a:decimal(12,2),b:map<string,long>>>"


# --- the user's columns -------------------------------------------------------------------------


def test_the_columns_of_a_file_are_understood():
    parsed = parse_columns(ORDER, "table.schema")
    assert parsed.problems == ()
    assert parsed.derived == (
        Derived("day", "date", "placed_at"),
        Derived("hour", "hour", "placed_at"),
    )
    lines = StructType((Field("sku", "string"), Field("quantity", "integer", nullable=False)))
    assert parsed.fields[:5] == (
        Field("order_id", "long", nullable=False),
        Field("amount", Decimal(12, 2), metadata={"comment": "gross"}),
        Field("placed_at", "timestamp"),
        Field("lines", ArrayType(lines)),
        Field("tags", MapType("string", "double")),
    )


@pytest.mark.parametrize(
    ("column", "problem"),
    [
        ({"name": "a b", "type": "long"}, "[0].name: 'a b' contains ' '"),
        *[
            ({"name": f"a{mark}b", "type": "long"}, "[0].name: ")
            for mark in ",;{}()\n\t=.\x00\x7f\ud800"
        ],
        ({"name": "", "type": "long"}, "[0].name: got '', wanted a name"),
        ({"type": "long"}, "[0].name: got None, wanted a name"),
        ({"name": 7, "type": "long"}, "[0].name: got 7"),
        ({"name": "_Kafka_x", "type": "long"}, "[0].name: '_Kafka_x' begins with _kafka_"),
        ({"name": "a"}, "[0].type: got None, wanted a type name"),
        ({"name": "a", "type": "int"}, "[0].type: unknown type 'int'; did you mean integer?"),
        ({"name": "a", "type": "Long"}, "[0].type: unknown type 'Long'; did you mean long?"),
        ({"name": "a", "type": "colour"}, "[0].type: unknown type 'colour'; wanted one of string"),
        ({"name": "a", "type": "decimal(39,0)"}, "[0].type: decimal(39,0) is out of bounds"),
        ({"name": "a", "type": {"array": {"array": "x"}}}, "[0].type.array.array: unknown type"),
        ({"name": "a", "type": {"list": "long"}}, "[0].type: got {'list': 'long'}, wanted"),
        ({"name": "a", "type": {"map": {"key": "long"}}}, "[0].type.map: got {'key': 'long'}"),
        ({"name": "a", "type": {"struct": []}}, "[0].type.struct: got [], wanted a list"),
        ({"name": "a", "type": "long", "nullable": "no"}, "[0].nullable: got 'no', wanted true"),
        ({"name": "a", "type": "long", "comment": 1}, "[0].comment: got 1, wanted text"),
        ({"name": "a", "type": "long", "typ": 1}, "[0]: unknown key 'typ', wanted name, type"),
        ("a long", "[0]: got 'a long', wanted a mapping"),
        (
            {"name": "a", "type": {"struct": [{"name": "x", "type": "foo"}, {"name": "X"}]}},
            "[0].type.struct[0].type: unknown type 'foo'",
        ),
        (
            {"name": "a", "type": {"struct": [{"name": "x", "type": "long", "from": "date(t)"}]}},
            "[0].type.struct[0]: unknown key 'from'",
        ),
    ],
)
def test_each_problem_has_its_path(column, problem):
    problems = parse_columns([column], "table.schema").problems
    assert any(found.startswith(f"table.schema{problem}") for found in problems), problems


def test_every_problem_is_reported_at_once_and_case_makes_no_other_name():
    problems = parse_columns(
        [{"name": "a", "type": "int"}, {"name": "A", "type": "long"}, {"name": "a"}], "t"
    ).problems
    assert [p.split(":")[0] for p in problems] == [
        "t[0].type",
        "t[1].name",
        "t[2].name",
        "t[2].type",
    ]


@pytest.mark.parametrize("columns", [[], "long", {"name": "a"}])
def test_a_schema_without_columns_is_a_problem(columns):
    assert parse_columns(columns, "t").problems == ("t: wanted a list of at least one column",)


def test_an_alias_that_contains_itself_is_a_problem_and_not_a_crash():
    kind: dict = {}
    kind["array"] = kind
    (problem,) = parse_columns([{"name": "a", "type": kind}], "t").problems
    assert "nested deeper" in problem


@pytest.mark.parametrize(
    ("column", "problem"),
    [
        (
            {"type": "date", "from": "week(at)"},
            "t[1].from: got 'week(at)', wanted FUNCTION(COLUMN)",
        ),
        ({"type": "date", "from": "at"}, "t[1].from: got 'at'"),
        ({"type": "date", "from": 3}, "t[1].from: got 3"),
        ({"type": "date", "from": "date(nope)"}, "t[1].from: there is no column 'nope'"),
        ({"type": "date", "from": "date(c)"}, "t[1].from: column 'c' is date, wanted a timestamp"),
        ({"type": "long", "from": "date(at)"}, "t[1].type: date() gives date, got long"),
        ({"type": "date", "from": "year(at)"}, "t[1].type: year() gives integer, got date"),
        (
            {"type": "date", "from": "date(at)", "nullable": False},
            "t[1].nullable: 'at' may be null, so 'c' may be too",
        ),
        ({"type": "date", "from": "date(_kafka_timestamp)"}, "t[1].from: there is no column"),
    ],
)
def test_a_derived_column_is_checked(column, problem):
    columns = [{"name": "at", "type": "timestamp"}, {"name": "c", **column}]
    problems = parse_columns(columns, "t").problems
    assert any(found.startswith(problem) for found in problems), problems


def test_a_column_may_come_from_the_time_of_the_record():
    columns = [
        {"name": "v", "type": "string"},
        {"name": "day", "type": "date", "from": "date(_kafka_timestamp)"},
    ]
    parsed = parse_columns(columns, "t", metadata_columns=["offset", "timestamp"])
    assert parsed.problems == ()
    assert parsed.derived == (Derived("day", "date", "_kafka_timestamp"),)
    assert METADATA_FIELDS["timestamp"] not in parsed.fields


# --- two schemas --------------------------------------------------------------------------------


def test_equal_schemas_have_no_differences_whatever_order_and_comments():
    fields = parse_columns(ORDER, "t").fields
    found = tuple(Field(f.name, f.type, f.nullable, {"comment": "x"}) for f in reversed(fields))
    assert differences(TableSchema(fields), TableSchema(found)) == []


def test_each_difference_is_a_sentence():
    wanted = TableSchema(
        (
            Field("id", "long", nullable=False),
            Field("amount", Decimal(12, 2)),
            Field("s", StructType((Field("x", "long"), Field("y", "long")))),
            Field("l", ArrayType("string")),
            Field("m", MapType("string", "long")),
            Field("gone", "date"),
        )
    )
    found = TableSchema(
        (
            Field("id", "long"),
            Field("amount", Decimal(10, 2)),
            Field("s", StructType((Field("x", "string"), Field("Y", "long")))),
            Field("l", ArrayType("binary", contains_null=False)),
            Field("m", MapType("string", "integer")),
            Field("more", "boolean"),
        )
    )
    assert differences(wanted, found) == [
        "column 'id' is not null as configured, nullable in the table",
        "column 'amount' is decimal(12,2) as configured, decimal(10,2) in the table",
        "column 's.x' is long as configured, string in the table",
        "column 's.y' (long) is not in the table, only 'Y'",
        "the table has a column 's.Y' (long) that is not configured",
        "column 'l.element' is string as configured, binary in the table",
        "column 'm.value' is long as configured, integer in the table",
        "column 'gone' (date) is not in the table",
        "the table has a column 'more' (boolean) that is not configured",
    ]
