"""What commands and outcomes share: how they are read, spelled, timed and signed.

A signature is the HMAC-SHA256, in hexadecimal, of the *canonical form* of the message without its
member `signature`: UTF-8, the names of each object sorted by code point, no spaces, no escapes
but those that JSON asks for, whole numbers only.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NoReturn

from delta_sink.errors import DataError
from delta_sink.forms import normal_table_uri

MESSAGE_BYTES_MAX: Final = 64 * 1024
ID_PATTERN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,127}")
TIME_PATTERN: Final = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,9})?)?(Z|[+-][0-9]{2}:?[0-9]{2})"
)

RefusalReason = Literal[
    "oversize",
    "malformed",
    "missing_field",
    "bad_field",
    "unknown_version",
    "unknown_command",
    "unknown_argument",
    "bad_argument",
    "expired",
    "issued_in_future",
    "no_expiry",
    "unsigned",
    "unknown_key",
    "bad_signature",
    "retention_below_floor",
]


class Refusal(DataError):
    """A message that is no command for this worker: dead letter, outcome `refused`, go on.

    Attributes:
        id: the command's id, where the message had one that could be read.
        table: the table in its normal form, under the same condition.
        command: the word that was the command.
    """

    def __init__(
        self, reason: RefusalReason, sentence: str, about: Mapping[str, object] | None = None
    ) -> None:
        said = about or {}
        self.id = readable_id(said.get("id"))
        self.command = readable_id(said.get("command"))
        table = said.get("table")
        self.table = normal_table_uri(table) if isinstance(table, str) else None
        name = f"command {self.id}" if self.id else "a control message"
        super().__init__(
            reason=reason, message=f"{name}: {sentence}", redacted=f"{name}: refused: {reason}"
        )


def readable_id(value: object) -> str | None:
    """Return a command's id, or a word like it; None for anything else."""
    return value if isinstance(value, str) and ID_PATTERN.fullmatch(value) else None


# --- JSON ----------------------------------------------------------------------------------------


def read_object(value: bytes | None) -> dict[str, Any]:
    """Return the JSON object that a record's value is. Raises Refusal if it is none."""
    if value is None:
        raise Refusal("malformed", "it has no value")
    if len(value) > MESSAGE_BYTES_MAX:
        sentence = f"it has {len(value)} bytes, at most {MESSAGE_BYTES_MAX} are taken"
        raise Refusal("oversize", sentence)
    try:
        found = json.loads(
            value.decode("utf-8"),
            object_pairs_hook=_without_doubles,
            parse_constant=_no_constant,
        )
        canonical_json(found)  # half of a surrogate pair is in no UTF-8
    except (ValueError, RecursionError) as error:
        # The decoder's own words may quote what it read; they say nothing that a person needs.
        raise Refusal("malformed", "it is no JSON in UTF-8, or names a member twice") from error
    if not isinstance(found, dict):
        raise Refusal("malformed", "expected a JSON object")
    return found


def _without_doubles(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a member is named twice")
    return found


def _no_constant(_name: str) -> NoReturn:
    raise ValueError("NaN and infinities are no JSON")


def canonical_json(value: object) -> bytes:
    """Return the one form of a JSON value over which signatures are made.

    Raises:
        ValueError: a text of it cannot be written in UTF-8.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode("utf-8")


def read_text(message: Mapping[str, Any], name: str, characters_max: int) -> str:
    """Return the text that a member is. Raises Refusal if it is none, or empty, or longer."""
    value = message[name]
    if not isinstance(value, str) or not 0 < len(value) <= characters_max:
        about = message if name != "table" else {**message, "table": None}
        raise Refusal("bad_field", f"'{name}': expected text, 1 to {characters_max} long", about)
    return value


def read_time(message: Mapping[str, Any], name: str) -> int | None:
    """Return the milliseconds that a member says, or None. Raises Refusal if it is no time."""
    value = message.get(name)
    if value is None:
        return None
    found = time_ms(value) if isinstance(value, str) else None
    if found is None:
        wanted = "a time with its zone, as 2026-11-24T10:00:00Z"
        raise Refusal("bad_field", f"'{name}': expected {wanted}", message)
    return found


_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def time_ms(text: str) -> int | None:
    """Return the milliseconds since 1970 of an ISO 8601 time with a zone; None for other texts."""
    if not TIME_PATTERN.fullmatch(text):
        return None
    try:
        return (dt.datetime.fromisoformat(text) - _EPOCH) // dt.timedelta(milliseconds=1)
    except (ValueError, OverflowError):
        return None


def iso_time(at_ms: int) -> str:
    """Return a time as messages spell it: in UTC, with milliseconds where there are any."""
    timespec = "milliseconds" if at_ms % 1000 else "seconds"
    found = _EPOCH + dt.timedelta(milliseconds=at_ms)
    return found.isoformat(timespec=timespec).replace("+00:00", "Z")


# --- signatures ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Signer:
    """A key to sign with, and the id by which workers know it."""

    key_id: str
    key: bytes = field(repr=False)


def signature_of(message: Mapping[str, object], key: bytes) -> str:
    """Return the HMAC-SHA256 of the message without its member `signature`, in hexadecimal."""
    signed = {name: value for name, value in message.items() if name != "signature"}
    return hmac.new(key, canonical_json(signed), hashlib.sha256).hexdigest()


def check_signature(message: Mapping[str, Any], keys: Mapping[str, bytes]) -> None:
    """Return if one of the keys signed the message. Raises Refusal if not."""
    given = message.get("signature")
    if given is None:
        raise Refusal("unsigned", "it is not signed, and this worker has keys", message)
    key_id = given.get("key_id") if isinstance(given, dict) else None
    digest = given.get("hmac_sha256") if isinstance(given, dict) else None
    if not isinstance(key_id, str) or not isinstance(digest, str):
        wanted = "an object of 'key_id' and 'hmac_sha256'"
        raise Refusal("bad_signature", f"'signature': expected {wanted}", message)
    key = keys.get(key_id)
    if key is None:
        raise Refusal("unknown_key", "it is signed with a key that this worker has not", message)
    if _has_fraction(message):
        sentence = "numbers with a fraction have no canonical form: write whole ones or text"
        raise Refusal("bad_signature", sentence, message)
    expected = signature_of(message, key).encode()
    if not hmac.compare_digest(expected, digest.lower().encode("utf-8", "replace")):
        sentence = f"the signature is not that of key '{key_id}' over this message"
        raise Refusal("bad_signature", sentence, message)


def _has_fraction(value: object) -> bool:
    if isinstance(value, dict):
        return any(_has_fraction(each) for each in value.values())
    if isinstance(value, list):
        return any(_has_fraction(each) for each in value)
    return isinstance(value, float)
