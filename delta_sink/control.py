"""Control messages: the commands to the maintenance workers, and what these answer.

One JSON object a record, keyed by the table's URI. The schemas are published in `schemas/`, the
words in docs/control.md. Everything here is a function of its arguments: the time is given, the
keys are given, nothing is sent.

What comes from the topic was written by anybody. `parse_command` returns a command whose every
part was checked, None for a table that is not ours, or raises a `Refusal`, whatever the bytes
are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, TypeAlias, get_args

from msgspec import Struct, field
from msgspec.structs import asdict

from delta_sink.control_message import (
    Refusal,
    Signer,
    canonical_json,
    check_signature,
    iso_time,
    read_object,
    read_text,
    read_time,
    readable_id,
    signature_of,
)
from delta_sink.forms import normal_table_uri
from delta_sink.where import WhereWrong, parse_where

VERSION: Final = 1
TEXT_CHARACTERS_MAX: Final = 4_096
"""How long the sentence of an outcome may be; what is longer is cut."""
COLUMNS_MAX: Final = 32
RETENTION_HOURS_MAX: Final = 24 * 3650
FILE_BYTES_MAX: Final = 1 << 40
PARTS_MAX: Final = 10_000
FUTURE_MS_MAX: Final = 300_000
"""How far ahead of ours the sender's clock may be."""
LIFE_MS: Final = 86_400_000
"""When a command without `expires_at` expires, counted from its `issued_at`."""

CommandName = Literal["compact", "vacuum", "checkpoint", "cleanup-log", "pause", "resume"]
COMMANDS: Final[tuple[CommandName, ...]] = get_args(CommandName)
Role = Literal["writer", "maintenance"]
ROLES: Final[tuple[Role, ...]] = get_args(Role)
State = Literal["accepted", "started", "progress", "succeeded", "refused", "failed"]
STATES: Final[tuple[State, ...]] = get_args(State)
FINAL_STATES: Final[frozenset[State]] = frozenset({"succeeded", "refused", "failed"})

# --- commands ------------------------------------------------------------------------------------


class Compact(Struct, frozen=True):
    """Rewrite small files into large ones. What is None, the worker's configuration says."""

    where: str | None = None
    target_file_bytes: int | None = None
    sort_by: tuple[str, ...] = ()
    zorder_by: tuple[str, ...] = ()
    dry_run: bool = False


class Vacuum(Struct, frozen=True):
    """Delete files that no version inside the retention needs; with `dry_run` only count them."""

    dry_run: bool
    retention_hours: int | None = None


class Checkpoint(Struct, frozen=True):
    """Write a checkpoint of the newest version."""

    dry_run: bool = False


class CleanupLog(Struct, frozen=True):
    """Remove log entries that a checkpoint has made superfluous and that are old enough."""

    dry_run: bool = False


class Pause(Struct, frozen=True):
    """Let the table's writers, or its maintenance, stand still until a `Resume`."""

    role: Role


class Resume(Struct, frozen=True):
    """End a pause."""

    role: Role


Arguments: TypeAlias = Compact | Vacuum | Checkpoint | CleanupLog | Pause | Resume

_KINDS: Final[Mapping[CommandName, type[Arguments]]] = {
    "compact": Compact,
    "vacuum": Vacuum,
    "checkpoint": Checkpoint,
    "cleanup-log": CleanupLog,
    "pause": Pause,
    "resume": Resume,
}
_NAMES: Final[Mapping[type, CommandName]] = {kind: name for name, kind in _KINDS.items()}


class Part(Struct, frozen=True):
    """Says that a command is one of the work items into which a large one was divided.

    `index` counts from 0 below `count`; `slot` is that of `lease.slot_of`.
    """

    parent: str
    index: int
    count: int
    slot: int


class Command(Struct, frozen=True):
    """What somebody asks of a table's maintenance. `table` is in its normal form."""

    id: str
    table: str
    args: Arguments
    issued_at_ms: int | None = None
    expires_at_ms: int | None = None
    issuer: str | None = None
    part: Part | None = None

    @property
    def command(self) -> CommandName:
        """The command's word."""
        return _NAMES[type(self.args)]

    @property
    def expiry_ms(self) -> int | None:
        """When the command expires, in milliseconds since 1970; None for one without any time."""
        if self.expires_at_ms is None and self.issued_at_ms is not None:
            return self.issued_at_ms + LIFE_MS
        return self.expires_at_ms

    def to_json(self) -> dict[str, object]:
        """Return the message without a signature. What has no value is left out."""
        found: dict[str, object | None] = {
            "v": VERSION,
            "id": self.id,
            "command": self.command,
            "table": self.table,
            "issued_at": None if self.issued_at_ms is None else iso_time(self.issued_at_ms),
            "expires_at": None if self.expires_at_ms is None else iso_time(self.expires_at_ms),
            "issuer": self.issuer,
            "args": _args_json(self.args),
            "part": None if self.part is None else _part_json(self.part),
        }
        return {name: value for name, value in found.items() if value is not None}


def _args_json(args: Arguments) -> dict[str, object]:
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in asdict(args).items()
        if value is not None and value != ()
    }


def _part_json(part: Part) -> dict[str, object]:
    return asdict(part)


@dataclasses.dataclass(frozen=True, slots=True)
class Rules:
    """What a worker takes commands by: its table, its keys, its floor.

    `signing_keys` are the keys by id; with any, a command must be signed by one of them.
    """

    table_uri: str
    retention_hours_min: int = 168
    signing_keys: Mapping[str, bytes] = dataclasses.field(default_factory=dict, repr=False)


def parse_command(value: bytes | None, rules: Rules, *, now_ms: int) -> Command | None:
    """Return the command that a record's value is, or None: it is for another table.

    Args:
        value: the record's value, whatever it is.
        rules: whom this worker obeys, and in what.
        now_ms: the wall clock.

    Raises:
        Refusal: it is none that may be obeyed. Nothing else is raised.
    """
    message = _addressed(value, rules.table_uri)
    if message is None:
        return None
    if rules.signing_keys:
        check_signature(message, rules.signing_keys)
    command = _command_of(message)
    _check_time(command, message, now_ms, is_signed=bool(rules.signing_keys))
    _check_floor(command, message, rules.retention_hours_min)
    return command


def read_command(value: bytes | None, table_uri: str) -> Command | None:
    """Return what a record says, to be shown and not to be obeyed: neither time nor key is looked at.

    Raises:
        Refusal: it is no command.
    """
    message = _addressed(value, table_uri)
    return None if message is None else _command_of(message)


def _addressed(value: bytes | None, table_uri: str) -> dict[str, Any] | None:
    """Return the message if it is for this table, in this version, and has what each must have."""
    message = read_object(value)
    if "table" not in message:
        raise Refusal("missing_field", "expected 'table', got none", message)
    if normal_table_uri(read_text(message, "table", 4_096)) != normal_table_uri(table_uri):
        return None
    _check_version(message)
    for name in ("id", "command"):
        if message.get(name) is None:
            raise Refusal("missing_field", f"expected '{name}', got none", message)
    if readable_id(message["id"]) is None:
        wanted = "up to 128 letters, digits or any of _.:-, a letter or digit first"
        raise Refusal("bad_field", f"'id': expected {wanted}", message)
    return message


def _command_of(message: Mapping[str, Any]) -> Command:
    name = message["command"]
    if name not in COMMANDS:
        raise Refusal("unknown_command", f"expected one of {', '.join(COMMANDS)}", message)
    return Command(
        id=message["id"],
        table=normal_table_uri(message["table"]),
        args=_read_arguments(_KINDS[name], message),
        issued_at_ms=read_time(message, "issued_at"),
        expires_at_ms=read_time(message, "expires_at"),
        issuer=read_text(message, "issuer", 256) if message.get("issuer") is not None else None,
        part=_read_part(message),
    )


def _check_version(message: Mapping[str, Any]) -> None:
    version = message.get("v")
    if version is None:
        raise Refusal("missing_field", "expected 'v', got none", message)
    if type(version) is not int:
        raise Refusal("bad_field", f"'v': expected {VERSION}", message)
    if version != VERSION:
        raise Refusal(
            "unknown_version", f"'v': expected {VERSION}, got {str(version)[:20]}", message
        )


def _check_time(
    command: Command, message: Mapping[str, Any], now_ms: int, *, is_signed: bool
) -> None:
    issued_ms, expiry_ms = command.issued_at_ms, command.expiry_ms
    if expiry_ms is not None and expiry_ms <= now_ms:
        raise Refusal("expired", f"it expired at {iso_time(expiry_ms)}", message)
    if issued_ms is not None and issued_ms > now_ms + FUTURE_MS_MAX:
        sentence = f"it was issued at {iso_time(issued_ms)}, here it is {iso_time(now_ms)}"
        raise Refusal("issued_in_future", sentence, message)
    if is_signed and expiry_ms is None:
        sentence = "signed, but without 'expires_at' or 'issued_at': it could be sent for ever"
        raise Refusal("no_expiry", sentence, message)


def _check_floor(command: Command, message: Mapping[str, Any], hours_min: int) -> None:
    args = command.args
    if not isinstance(args, Vacuum) or args.retention_hours is None:
        return
    if args.retention_hours < hours_min:
        sentence = (
            f"'retention_hours': {args.retention_hours} is below {hours_min}, the lowest that this "
            f"worker's configuration allows (vacuum.retention_hours_min)"
        )
        raise Refusal("retention_below_floor", sentence, message)


# --- arguments -----------------------------------------------------------------------------------

_Reader: TypeAlias = Callable[[object], object]


class _Wrong(ValueError):
    """An argument is not what it must be: `expected …`."""


def _flag(value: object) -> object:
    if not isinstance(value, bool):
        raise _Wrong("expected true or false")
    return value


def _whole(low: int, high: int) -> _Reader:
    def read(value: object) -> object:
        if type(value) is not int or not low <= value <= high:
            raise _Wrong(f"expected a whole number from {low} to {high}")
        return value

    return read


def _columns(value: object) -> object:
    if not isinstance(value, list) or not 0 < len(value) <= COLUMNS_MAX:
        raise _Wrong(f"expected a list of 1 to {COLUMNS_MAX} names of columns")
    if not all(isinstance(name, str) and name for name in value):
        raise _Wrong("expected names of columns")
    if len(set(value)) != len(value):
        raise _Wrong("a column is named twice")
    return tuple(value)


def _filter(value: object) -> object:
    if not isinstance(value, str):
        raise _Wrong("expected a filter as text")
    try:
        parse_where(value)
    except WhereWrong as error:
        raise _Wrong(str(error)) from error
    return value


def _role(value: object) -> object:
    if value not in ROLES:
        raise _Wrong(f"expected {' or '.join(ROLES)}")
    return value


_READERS: Final[Mapping[type[Arguments], Mapping[str, _Reader]]] = {
    Compact: {
        "where": _filter,
        "target_file_bytes": _whole(1, FILE_BYTES_MAX),
        "sort_by": _columns,
        "zorder_by": _columns,
        "dry_run": _flag,
    },
    Vacuum: {"retention_hours": _whole(0, RETENTION_HOURS_MAX), "dry_run": _flag},
    Checkpoint: {"dry_run": _flag},
    CleanupLog: {"dry_run": _flag},
    Pause: {"role": _role},
    Resume: {"role": _role},
}
_REQUIRED: Final[Mapping[type[Arguments], str]] = {
    Vacuum: "dry_run",
    Pause: "role",
    Resume: "role",
}


def _read_arguments(kind: type[Arguments], message: Mapping[str, Any]) -> Arguments:
    given = message.get("args")
    if given is not None and not isinstance(given, dict):
        raise Refusal("bad_field", "'args': expected an object", message)
    readers = _READERS[kind]
    values: dict[str, Any] = {}
    for name, value in (given or {}).items():
        if name not in readers:
            known = ", ".join(readers)
            raise Refusal(
                "unknown_argument", f"'{name[:64]}' is none of its arguments: {known}", message
            )
        if value is None:
            continue
        try:
            values[name] = readers[name](value)
        except _Wrong as wrong:
            raise Refusal("bad_argument", f"'{name}': {wrong}", message) from wrong
    required = _REQUIRED.get(kind)
    if required is not None and required not in values:
        raise Refusal("bad_argument", f"'{required}': it must be said", message)
    if values.get("sort_by") and values.get("zorder_by"):
        raise Refusal("bad_argument", "'sort_by' and 'zorder_by': expected one of them", message)
    return kind(**values)


_PART_READERS: Final[Mapping[str, _Reader]] = {
    "index": _whole(0, PARTS_MAX - 1),
    "count": _whole(1, PARTS_MAX),
    "slot": _whole(0, 63),
}


def _read_part(message: Mapping[str, Any]) -> Part | None:
    given = message.get("part")
    if given is None:
        return None
    if not isinstance(given, dict) or readable_id(given.get("parent")) is None:
        raise Refusal("bad_field", "'part': expected an object with a 'parent'", message)
    try:
        numbers: dict[str, Any] = {
            name: read(given.get(name)) for name, read in _PART_READERS.items()
        }
    except _Wrong as wrong:
        raise Refusal("bad_field", f"'part': {wrong}", message) from wrong
    if numbers["index"] >= numbers["count"]:
        raise Refusal("bad_field", "'part': 'index' must be below 'count'", message)
    return Part(parent=given["parent"], **numbers)


def encode_command(command: Command, signer: Signer | None = None) -> bytes:
    """Return the record's value: the message in its canonical form, signed if there is a signer."""
    message = command.to_json()
    if signer is not None:
        digest = signature_of(message, signer.key)
        message["signature"] = {"key_id": signer.key_id, "hmac_sha256": digest}
    return canonical_json(message)


# --- outcomes ------------------------------------------------------------------------------------


class Outcome(Struct, frozen=True):
    """What became of a command so far. `result` has its figures, `message` is one sentence."""

    id: str
    table: str
    command: str
    state: State
    at_ms: int
    worker: str
    message: str = ""
    result: Mapping[str, object] = field(default_factory=dict)
    part: Part | None = None

    @property
    def is_final(self) -> bool:
        """Whether nothing more is said of the command after this."""
        return self.state in FINAL_STATES

    def to_json(self) -> dict[str, object]:
        """Return the message."""
        found: dict[str, object] = {
            "v": VERSION,
            "id": self.id,
            "table": self.table,
            "command": self.command,
            "state": self.state,
            "at": iso_time(self.at_ms),
            "worker": self.worker,
            "message": self.message[:TEXT_CHARACTERS_MAX],
            "result": dict(self.result),
        }
        if self.part is not None:
            found["part"] = _part_json(self.part)
        return found


def encode_outcome(outcome: Outcome) -> bytes:
    """Return the record's value."""
    return canonical_json(outcome.to_json())


def parse_outcome(value: bytes | None) -> Outcome | None:
    """Return the outcome that a record's value is, or None: it is none that we understand."""
    try:
        message = read_object(value)
        at_ms = read_time(message, "at")
        part = _read_part(message)
    except Refusal:
        return None
    texts = [message.get(name) for name in ("id", "table", "command", "worker", "message")]
    result = message.get("result")
    if message.get("v") != VERSION or at_ms is None or message.get("state") not in STATES:
        return None
    if not all(isinstance(text, str) for text in texts) or not isinstance(result, dict | None):
        return None
    return Outcome(
        id=message["id"],
        table=normal_table_uri(message["table"]),
        command=message["command"],
        state=message["state"],
        at_ms=at_ms,
        worker=message["worker"],
        message=message["message"],
        result=result or {},
        part=part,
    )


def outcome_of(
    command: Command,
    state: State,
    *,
    at_ms: int,
    worker: str,
    message: str = "",
    result: Mapping[str, object] | None = None,
) -> Outcome:
    """Return an outcome of a command."""
    return Outcome(
        id=command.id,
        table=command.table,
        command=command.command,
        state=state,
        at_ms=at_ms,
        worker=worker,
        message=message,
        result=result or {},
        part=command.part,
    )
