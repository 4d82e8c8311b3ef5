"""How single values of the configuration are written: numbers, sizes, flags, URLs, cron.

Each form is an annotation (`Annotated[int, Size(1024)]`) that pydantic calls to read a value and
to describe it in the JSON Schema. A form raises `Wrong`, whose sentences say what was expected
and never show the value; the loader adds the value where it is safe to show.

Values that come from references are text, so each form also reads its text.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

MIB = 1024 * 1024
INT_MAX = 2**63 - 1
_SIZE = re.compile(r"(\d{1,19}) ?(B|[KMGT]i?B)?")
_SIZE_UNITS = {"": 1, "B": 1} | {
    f"{letter}{suffix}": base**power
    for power, letter in enumerate("KMGT", start=1)
    for suffix, base in (("B", 1000), ("iB", 1024))
}


class Wrong(ValueError):  # `raise Wrong(...)` is a sentence; an Error suffix adds nothing
    """A value is not what its form wants: one or more sentences, each with a place below it.

    `quiet` says that the value must not be shown, because it may hold a secret.
    """

    def __init__(self, sentence: str, *below: str, quiet: bool = False) -> None:
        super().__init__(sentence)
        self.found: list[tuple[tuple[str, ...], str]] = [(below, sentence)]
        self.quiet = quiet
        self.partial: object = None

    @classmethod
    def together(
        cls, found: Sequence[tuple[tuple[str, ...], str]], partial: object = None
    ) -> Wrong:
        """Return one exception for several problems; there must be one at least.

        `partial` is the value as far as it can be read, for rules that look at other parts of it.
        """
        wrong = cls(found[0][1], quiet=True)
        wrong.found = list(found)
        wrong.partial = partial
        return wrong


class Form:
    """What the forms share: pydantic asks a form for its reader and for its JSON Schema."""

    __slots__ = ()

    def read(self, value: object) -> object:
        """Return the value in its form. Raises Wrong."""
        raise NotImplementedError

    def describe(self) -> dict[str, object]:
        """Return the JSON Schema of what may be written."""
        raise NotImplementedError

    def __get_pydantic_core_schema__(
        self, source: object, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self.read)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, object]:
        return self.describe()


# --- numbers and flags -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Whole(Form):
    """A whole number from `at_least` to `at_most`."""

    at_least: int = 0
    at_most: int = INT_MAX

    def read(self, value: object) -> object:
        """Return the number. Raises Wrong for anything that is not one, fractions included."""
        if isinstance(value, str) and re.fullmatch(r"[-+]?\d{1,19}", value):
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise Wrong("expected a whole number")
        if not self.at_least <= value <= self.at_most:
            if self.at_most == INT_MAX:
                raise Wrong(f"expected {self.at_least} or more")
            raise Wrong(f"expected a number from {self.at_least} to {self.at_most}")
        return value

    def describe(self) -> dict[str, object]:
        """Return an integer with its bounds."""
        bounds = {} if self.at_most == INT_MAX else {"maximum": self.at_most}
        return {"type": "integer", "minimum": self.at_least, **bounds}


@dataclass(frozen=True, slots=True)
class Size(Form):
    """A number of bytes, at least `at_least`: an integer or `64MiB`, `10MB`, `1 GiB`."""

    at_least: int = 1
    at_most: int = INT_MAX

    def read(self, value: object) -> object:
        """Return the bytes. Raises Wrong."""
        if isinstance(value, str):
            match = _SIZE.fullmatch(value)
            value = None if match is None else int(match[1]) * _SIZE_UNITS[match[2] or ""]
        if isinstance(value, bool) or not isinstance(value, int):
            raise Wrong("expected bytes or a size like 64MiB")
        if not self.at_least <= value <= self.at_most:
            least = f"expected {size_text(self.at_least)} or more"
            most = "" if self.at_most == INT_MAX else f", at most {size_text(self.at_most)}"
            raise Wrong(least + most)
        return value

    def describe(self) -> dict[str, object]:
        """Return an integer, or text of digits and a unit."""
        return {
            "anyOf": [
                {"type": "integer", "minimum": self.at_least},
                {"type": "string", "pattern": f"^{_SIZE.pattern}$"},
            ]
        }


def size_text(size_bytes: int) -> str:
    """Return the size in the largest binary unit that leaves no rest: `64MiB`, `1000 bytes`."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        count, rest = divmod(size_bytes, _SIZE_UNITS[unit])
        if count and not rest:
            return f"{count}{unit}"
    return f"{size_bytes} bytes"


@dataclass(frozen=True, slots=True)
class SizeOrAuto(Form):
    """A `Size`, or the word `auto`."""

    at_least: int

    def read(self, value: object) -> object:
        """Return the bytes or "auto". Raises Wrong."""
        if value == "auto":
            return "auto"
        try:
            return Size(self.at_least).read(value)
        except Wrong as wrong:
            raise Wrong(f"{wrong}, or auto") from None

    def describe(self) -> dict[str, object]:
        """Return the schema of a size, or the constant."""
        return {"anyOf": [{"const": "auto"}, Size(self.at_least).describe()]}


@dataclass(frozen=True, slots=True)
class Fraction(Form):
    """A number above 0, at most 1."""

    def read(self, value: object) -> object:
        """Return the number. Raises Wrong."""
        if isinstance(value, str) and re.fullmatch(r"\d*\.?\d+", value):
            value = float(value)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
            raise Wrong("expected a number above 0, at most 1")
        return float(value)

    def describe(self) -> dict[str, object]:
        """Return a number with its bounds."""
        return {"type": "number", "exclusiveMinimum": 0, "maximum": 1}


@dataclass(frozen=True, slots=True)
class Flag(Form):
    """`true` or `false`."""

    def read(self, value: object) -> object:
        """Return the truth value; other words than these two are refused. Raises Wrong."""
        if isinstance(value, str):
            value = {"true": True, "false": False}.get(value)
        if not isinstance(value, bool):
            raise Wrong("expected true or false")
        return value

    def describe(self) -> dict[str, object]:
        """Return a boolean."""
        return {"type": "boolean"}


@dataclass(frozen=True, slots=True)
class FlagOrColumns(Form):
    """`auto`, `true`, `false` or a list of columns."""

    def read(self, value: object) -> object:
        """Return "auto", the truth value or the names. Raises Wrong."""
        if value in ("auto", "true", "false") or isinstance(value, bool):
            return "auto" if value == "auto" else Flag().read(value)
        if isinstance(value, list | tuple) and all(isinstance(n, str) and n for n in value):
            return tuple(str(name) for name in value)
        raise Wrong("expected auto, true, false or a list of columns")

    def describe(self) -> dict[str, object]:
        """Return the three alternatives."""
        names = {"type": "array", "items": {"type": "string", "minLength": 1}}
        return {"anyOf": [{"const": "auto"}, {"type": "boolean"}, names]}


# --- text --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Text(Form):
    """Text that matches `pattern` as a whole; `what` says so in words."""

    pattern: str = r"(?s).+"
    what: str = "text that is not empty"

    def read(self, value: object) -> object:
        """Return the text. Raises Wrong, also for numbers: quotes make them text."""
        if not isinstance(value, str) or re.fullmatch(self.pattern, value) is None:
            number = isinstance(value, int | float) and not isinstance(value, bool)
            raise Wrong(f"expected {self.what}{'; put it in quotes' if number else ''}")
        return str(value)

    def describe(self) -> dict[str, object]:
        """Return text with its pattern."""
        if self == Text():
            return {"type": "string", "minLength": 1}
        return {"type": "string", "pattern": f"^(?:{self.pattern})$"}


NAME = Text(r"[A-Za-z0-9_.-]+", "letters, digits, '_', '.' and '-' only")
TOPIC = Text(
    r"(?!\.{1,2}$)[A-Za-z0-9_.-]{1,249}",
    "a topic name: 1 to 249 letters, digits, '_', '.' and '-'",
)


@dataclass(frozen=True, slots=True)
class Pattern(Form):
    """A regular expression."""

    def read(self, value: object) -> object:
        """Return its text. Raises Wrong if it does not compile."""
        text = Text().read(value)
        try:
            re.compile(str(text))
        except re.error as error:
            raise Wrong(f"expected a regular expression: {error.msg}") from None
        return text

    def describe(self) -> dict[str, object]:
        """Return text in the format of a regular expression."""
        return {"type": "string", "format": "regex", "minLength": 1}


@dataclass(frozen=True, slots=True)
class Url(Form):
    """An http or https address without credentials in it."""

    def read(self, value: object) -> object:
        """Return its text without a slash at the end. Raises Wrong."""
        text = value if isinstance(value, str) else ""
        host = url_host(text)
        if not host or urlsplit(text).scheme not in ("http", "https"):
            raise Wrong("expected an address like https://host:port", quiet=True)
        if "@" in urlsplit(text).netloc:
            raise Wrong(
                "an address holds no user or password; they have keys of their own", quiet=True
            )
        if re.search(r"[\s\x00-\x1f]", text):
            raise Wrong("an address holds no spaces", quiet=True)
        return str(text).rstrip("/")

    def describe(self) -> dict[str, object]:
        """Return text that begins like an address."""
        return {"type": "string", "pattern": "^https?://[^@\\s]+$"}


def url_host(url: str) -> str:
    """Return the host of an address in lower case; "" if there is none or the port is wrong."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return ""
    return parts.hostname or ""


def is_local(host: str) -> bool:
    """Say whether the host is this machine: localhost or a loopback address."""
    name = host.strip("[]").rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


# --- cron --------------------------------------------------------------------------------------

_CRON_FIELDS = (
    ("minute", 0, 59),
    ("hour", 0, 23),
    ("day of the month", 1, 31),
    ("month", 1, 12),
    ("day of the week", 0, 7),
)


@dataclass(frozen=True, slots=True)
class Cron(Form):
    """A cron expression of five fields, in UTC."""

    def read(self, value: object) -> object:
        """Return its text with single spaces. Raises Wrong and names the field."""
        fields = value.split() if isinstance(value, str) else []
        if len(fields) != len(_CRON_FIELDS):
            raise Wrong("expected five fields: minute hour day month weekday")
        for text, (name, low, high) in zip(fields, _CRON_FIELDS, strict=True):
            for item in text.split(","):
                if not _is_cron_item(item, low, high):
                    raise Wrong(f"expected *, numbers from {low} to {high}, a-b or /n as {name}")
        return " ".join(fields)

    def describe(self) -> dict[str, object]:
        """Return text of five fields."""
        return {"type": "string", "pattern": r"^\s*\S+(\s+\S+){4}\s*$"}


def _is_cron_item(item: str, low: int, high: int) -> bool:
    match = re.fullmatch(r"(?:\*|(\d{1,2})(?:-(\d{1,2}))?)(?:/(\d{1,2}))?", item)
    if match is None:
        return False
    first = low if match[1] is None else int(match[1])
    last = first if match[2] is None else int(match[2])
    step = 1 if match[3] is None else int(match[3])
    steps_over_one = match[3] is not None and match[1] is not None and match[2] is None
    return low <= first <= last <= high and step >= 1 and not steps_over_one


# --- Delta's intervals -------------------------------------------------------------------------

_INTERVAL = re.compile(r"interval((?: +\d{1,12} +[a-z]+)+)", re.IGNORECASE)
_INTERVAL_UNITS_MS = {
    "millisecond": 1,
    "second": 1000,
    "minute": 60_000,
    "hour": 3_600_000,
    "day": 86_400_000,
    "week": 7 * 86_400_000,
}


def interval_text_ms(text: str) -> int | None:
    """Return the length of `interval 7 days`, or None if it is no interval of fixed length.

    Months and years have no fixed length and Delta refuses them as well.
    """
    match = _INTERVAL.fullmatch(text.strip())
    if match is None:
        return None
    words = match[1].lower().split()
    total_ms = 0
    for count, unit in zip(words[::2], words[1::2], strict=True):
        unit_ms = _INTERVAL_UNITS_MS.get(unit.removesuffix("s"))
        if unit_ms is None:
            return None
        total_ms += int(count) * unit_ms
    return total_ms


# --- where a table is --------------------------------------------------------------------------


def normal_table_uri(uri: str) -> str:
    """Return the one spelling under which tables are compared; it changes nothing but the text.

    `s3a://` becomes `s3://`, `file:///a` becomes `/a`, slashes at the end go. A relative path
    stays relative: only the caller knows the folder it starts from.
    """
    scheme, separator, rest = uri.partition("://")
    if not separator:
        return uri.rstrip("/") or uri[:1]
    if scheme.lower() == "file":
        path = unquote(rest.removeprefix("localhost"))
        return path.rstrip("/") or "/"
    if scheme.lower() in ("s3", "s3a"):
        return f"s3://{rest.rstrip('/')}"
    return uri.rstrip("/")


_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")


class TableUri(Form):
    """Reads `table.uri` and returns its normal form."""

    def read(self, value: object) -> str:
        """Return the normal form. Raises Wrong for a scheme that this version cannot write to."""
        if not isinstance(value, str) or not value or re.search(r"[\x00-\x1f\x7f]", value):
            raise Wrong("expected s3://bucket/path or a local path")
        scheme, separator, rest = value.partition("://")
        if not separator:
            return normal_table_uri(str(value))
        known = scheme.lower()
        if known in ("gs", "gcs", "az", "azure", "abfs", "abfss", "adl", "adls", "wasb", "wasbs"):
            raise Wrong(f"{known}:// is not in this version; expected s3:// or a local path")
        if known not in ("s3", "s3a", "file"):
            raise Wrong("expected s3://, s3a://, file:// or a local path", quiet=True)
        if known == "file" and not rest.removeprefix("localhost").startswith("/"):
            raise Wrong("expected three slashes: file:///path")
        bucket, *parts = rest.rstrip("/").split("/")
        if known != "file" and not _BUCKET.fullmatch(bucket):
            raise Wrong("expected a bucket's name after s3://", quiet=True)
        if known != "file" and any(part in ("", ".", "..") for part in parts):
            raise Wrong("a path in a bucket has no empty, '.' or '..' part")
        return normal_table_uri(str(value))

    def describe(self) -> dict[str, object]:
        """Return text."""
        return {"type": "string", "minLength": 1}
