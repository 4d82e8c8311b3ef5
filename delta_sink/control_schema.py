"""The JSON Schemas of commands and outcomes, as `schemas/` publishes them.

`python -m delta_sink.control_schema command` prints the one, `… outcome` the other. A schema
takes every message that a worker may obey; what needs the worker's own knowledge (keys, times,
its table, its floor, the filter's grammar) it leaves to the worker.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Final

from delta_sink.control import (
    COLUMNS_MAX,
    COMMANDS,
    FILE_BYTES_MAX,
    PARTS_MAX,
    RETENTION_HOURS_MAX,
    ROLES,
    STATES,
    TEXT_CHARACTERS_MAX,
    VERSION,
)
from delta_sink.control_message import ID_PATTERN, TIME_PATTERN
from delta_sink.where import LENGTH_MAX

Schema = dict[str, object]

DRAFT: Final = "https://json-schema.org/draft/2020-12/schema"


def command_schema() -> Schema:
    """Return the schema of a command."""
    return {
        "$schema": DRAFT,
        "title": "A command to the maintenance of a Delta table",
        "description": "The value of a record of the control topic; its key is the table's URI.",
        "type": "object",
        "required": ["v", "id", "command", "table"],
        "properties": {
            "v": {"const": VERSION, "description": "The version of this format."},
            "id": _id("Names the command; sent again, it acts once."),
            "command": {"enum": list(COMMANDS)},
            "table": _text("The table's URI.", 4_096),
            "issued_at": _optional(_time("When it was issued.")),
            "expires_at": _optional(_time("From when on it is refused.")),
            "issuer": _optional(_text("Who issued it, for people.", 256)),
            "args": {"type": ["object", "null"]},
            "part": _optional(_part()),
            "signature": _optional(_signature()),
        },
        "allOf": [
            *(_arguments(name, _ARGUMENTS[name], _REQUIRED.get(name)) for name in COMMANDS),
            {
                "not": {
                    "properties": {
                        "args": {
                            "type": "object",
                            "required": ["sort_by", "zorder_by"],
                            "properties": {
                                "sort_by": {"type": "array"},
                                "zorder_by": {"type": "array"},
                            },
                        }
                    },
                    "required": ["args"],
                }
            },
        ],
    }


def outcome_schema() -> Schema:
    """Return the schema of an outcome."""
    return {
        "$schema": DRAFT,
        "title": "What became of a command so far",
        "description": "The value of a record of the status topic; its key is the table's URI.",
        "type": "object",
        "required": ["v", "id", "table", "command", "state", "at", "worker", "message", "result"],
        "properties": {
            "v": {"const": VERSION, "description": "The version of this format."},
            "id": {"type": "string", "description": "The command's id."},
            "table": _text("The table's URI, in its normal form.", 4_096),
            "command": {"type": "string", "description": "The command's word."},
            "state": {
                "enum": list(STATES),
                "description": "After succeeded, refused or failed nothing more is said.",
            },
            "at": _time("When this was said."),
            "worker": {"type": "string", "description": "The worker that said it."},
            "message": {
                "type": "string",
                "maxLength": TEXT_CHARACTERS_MAX,
                "description": "One sentence for people; may be empty.",
            },
            "result": {
                "type": ["object", "null"],
                "description": "The figures, by name.",
                "properties": {
                    name: {"type": "integer", "minimum": 0}
                    for name in (
                        "files_removed",
                        "files_added",
                        "bytes_removed",
                        "bytes_added",
                        "rows",
                        "commits",
                        "files_deleted",
                        "bytes_deleted",
                    )
                }
                | {"dry_run": {"type": "boolean"}},
            },
            "part": _optional(_part()),
        },
    }


# --- pieces --------------------------------------------------------------------------------------


def _optional(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _text(description: str, characters_max: int) -> Schema:
    return {
        "type": "string",
        "minLength": 1,
        "maxLength": characters_max,
        "description": description,
    }


def _id(description: str) -> Schema:
    return {"type": "string", "pattern": f"^{ID_PATTERN.pattern}$", "description": description}


def _time(description: str) -> Schema:
    return {
        "type": "string",
        "pattern": f"^{TIME_PATTERN.pattern}$",
        "description": f"{description} ISO 8601 with a zone.",
    }


def _whole(description: str, low: int, high: int) -> Schema:
    return {"type": "integer", "minimum": low, "maximum": high, "description": description}


def _columns(description: str) -> Schema:
    return {
        "type": "array",
        "items": {"type": "string", "minLength": 1},
        "minItems": 1,
        "maxItems": COLUMNS_MAX,
        "uniqueItems": True,
        "description": description,
    }


def _part() -> Schema:
    return {
        "type": "object",
        "description": "Set by workers: this is one of the work items of a larger command.",
        "required": ["parent", "index", "count", "slot"],
        "properties": {
            "parent": _id("The larger command's id."),
            "index": _whole("Which one, from 0.", 0, PARTS_MAX - 1),
            "count": _whole("Of how many.", 1, PARTS_MAX),
            "slot": _whole("The slot that it is about.", 0, 63),
        },
    }


def _signature() -> Schema:
    return {
        "type": "object",
        "description": "HMAC-SHA256 over the canonical form of all the rest.",
        "required": ["key_id", "hmac_sha256"],
        "properties": {
            "key_id": {"type": "string"},
            "hmac_sha256": {"type": "string", "pattern": "^[0-9a-fA-F]{64}$"},
        },
    }


_DRY_RUN: Final[Schema] = {"type": "boolean", "description": "Only say what would be done."}
_ARGUMENTS: Final[dict[str, dict[str, Schema]]] = {
    "compact": {
        "where": _text("A filter on table partition columns.", LENGTH_MAX),
        "target_file_bytes": _whole("Size of the files made.", 1, FILE_BYTES_MAX),
        "sort_by": _columns("Columns to sort rows by."),
        "zorder_by": _columns("Columns to Z-order rows by."),
        "dry_run": _DRY_RUN,
    },
    "vacuum": {
        "retention_hours": _whole("Keep what was live since then.", 0, RETENTION_HOURS_MAX),
        "dry_run": _DRY_RUN,
    },
    "checkpoint": {"dry_run": _DRY_RUN},
    "cleanup-log": {"dry_run": _DRY_RUN},
    "pause": {"role": {"enum": list(ROLES)}},
    "resume": {"role": {"enum": list(ROLES)}},
}
_REQUIRED: Final = {"vacuum": "dry_run", "pause": "role", "resume": "role"}


def _arguments(command: str, arguments: dict[str, Schema], required: str | None) -> Schema:
    """Return what follows for `args` from the command's word."""
    args: Schema = {
        "type": ["object", "null"] if required is None else "object",
        "additionalProperties": False,
        "properties": {
            name: schema if name == required else _optional(schema)
            for name, schema in arguments.items()
        },
    }
    then: Schema = {"properties": {"args": args}}
    if required is not None:
        args["required"] = [required]
        then["required"] = ["args"]
    return {"if": {"properties": {"command": {"const": command}}}, "then": then}


def main(arguments: Sequence[str]) -> int:
    """Print the schema that is asked for; return the exit code."""
    schemas = {"command": command_schema, "outcome": outcome_schema}
    if len(arguments) != 1 or arguments[0] not in schemas:
        sys.stderr.write("usage: python -m delta_sink.control_schema command|outcome\n")
        return 2
    schema = schemas[arguments[0]]()
    sys.stdout.write(json.dumps(schema, indent=2, ensure_ascii=False) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
