"""Statistics of a whole file from those of its parts, for files that are written as a stream.

Each part is the text that `file_statistics` gives for some of the rows. A bound of the whole is
the outermost of the parts' bounds. Where a part has values and yet no bound (a NaN, a year that
no reader parses), the whole has none either.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from decimal import Decimal as Exact
from typing import TypeAlias

from delta_sink.delta.types import DataType, Decimal, Field, StructType


class _Number(str):
    """A number as the text of the statistics spells it: `json` would round decimals."""

    __slots__ = ()


_Value: TypeAlias = "str | _Number | dict[str, _Value]"
_Tree: TypeAlias = "dict[str, _Value]"


def merge_statistics(fields: Sequence[Field], parts: Sequence[str]) -> str:
    """Return the JSON text of `add.stats` for the rows of all parts together.

    `fields` describe the columns of the file, in order; every part was made for the same ones.
    """
    assert parts, "a file has at least one part"
    if len(parts) == 1:
        return parts[0]
    trees = [json.loads(text, parse_int=_Number, parse_float=_Number) for text in parts]
    return _render(
        {
            "numRecords": _Number(sum(int(tree["numRecords"]) for tree in trees)),
            "minValues": _bounds(fields, trees, "minValues", min),
            "maxValues": _bounds(fields, trees, "maxValues", max),
            "nullCount": _nulls([tree["nullCount"] for tree in trees]),
        }
    )


def _nulls(trees: Sequence[_Tree]) -> _Tree:
    merged: _Tree = {}
    for name, value in trees[0].items():
        values = [tree[name] for tree in trees]
        if isinstance(value, dict):
            merged[name] = _nulls(values)  # type: ignore[arg-type]  # a struct is one in all parts
        else:
            merged[name] = _Number(sum(int(str(v)) for v in values))
    return merged


def _bounds(
    fields: Sequence[Field],
    trees: Sequence[dict[str, _Tree]],
    which: str,
    outermost: Callable[..., object],
) -> _Tree:
    parts = [(int(str(tree["numRecords"])), tree[which], tree["nullCount"]) for tree in trees]
    return _field_bounds(fields, parts, outermost)


def _field_bounds(
    fields: Sequence[Field],
    parts: Sequence[tuple[int, _Tree, _Tree]],
    outermost: Callable[..., object],
) -> _Tree:
    """Return the bounds of sibling columns; a part is its rows, its bounds, its null counts."""
    merged: _Tree = {}
    for field in fields:
        name = field.name
        if isinstance(field.type, StructType):
            inner = [
                (rows, bounds.get(name, {}), nulls.get(name, {})) for rows, bounds, nulls in parts
            ]
            found = _field_bounds(field.type.fields, inner, outermost)  # type: ignore[arg-type]  # a struct's are trees
            if found:
                merged[name] = found
            continue
        values: list[_Value] = []
        for rows, bounds, nulls in parts:
            if name in bounds:
                values.append(bounds[name])
            elif name not in nulls or int(str(nulls[name])) < rows:
                break  # this part has values and says nothing of where they lie
        else:
            if values:
                merged[name] = outermost(values, key=_order(field.type))  # type: ignore[assignment]  # one of them
    return merged


def _order(data_type: DataType) -> Callable[[str], object]:
    """Return by what bounds of this type compare; text of dates and times sorts as they do."""
    if isinstance(data_type, Decimal):
        return Exact
    match data_type:
        case "float" | "double":
            return float
        case "long" | "integer" | "short" | "byte":
            return int
        case _:
            return str


def _render(value: _Value) -> str:
    if isinstance(value, dict):
        pairs = (f"{_render(name)}:{_render(item)}" for name, item in value.items())
        return "{" + ",".join(pairs) + "}"
    return str(value) if isinstance(value, _Number) else json.dumps(value, ensure_ascii=False)
