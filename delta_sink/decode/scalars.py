"""One JSON value as one value of a column's type: from text, never rounded, or not at all.

* integers: any number whose value is whole (`1`, `1.0`, `1e3`) and fits; no string, no boolean;
* decimals: a number, or a string `[+-]digits[.digits][e±digits]`, whose value fits without
  rounding; zeros at the end do not count;
* float and double: a number; the nearest binary value is what these types mean, so `0.1` is taken
  and `1e-400` is 0.0, but what would be infinite is out of range;
* date: `YYYY-MM-DD`; years 1 to 9999;
* timestamp: `YYYY-MM-DD`, then `T` or a space and `HH[:MM[:SS[.fraction]]]`, then `Z`, `±HH`,
  `±HHMM`, `±HH:MM` or nothing, which means UTC; digits below microseconds are cut off;
* timestamp_ntz: the same, but a zone is refused; epoch formats: whole numbers, in both types;
* binary: a string, strict base64 (with padding) or hex.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable
from datetime import date
from decimal import Decimal as PythonDecimal
from math import isinf

import pyarrow as pa

from delta_sink.decode.rows import TIMESTAMP_MAX_US, TIMESTAMP_MIN_US, DecodeSpec, Reason
from delta_sink.delta.types import DataType, Decimal

INTEGER_BITS = {"long": 64, "integer": 32, "short": 16, "byte": 8}
"""The integer types and how many bits hold them, sign included."""


class Number(str):
    """A JSON number as it was written."""

    __slots__ = ()


class Misfit(Exception):
    """The value does not fit; `why` is added to the sentence and never shows the value."""

    def __init__(self, reason: Reason, why: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.why = why


def reader_of(data_type: DataType, spec: DecodeSpec) -> Callable[[object], object]:
    """Return the function that reads one JSON value as this type; it raises `Misfit`."""
    if isinstance(data_type, Decimal):
        return _decimal(data_type)
    assert isinstance(data_type, str), data_type
    if data_type in INTEGER_BITS:
        return _integer(INTEGER_BITS[data_type])
    if data_type in ("timestamp", "timestamp_ntz"):
        return timestamp_reader(zoned=data_type == "timestamp", spec=spec)
    return {
        "string": _string,
        "boolean": _boolean,
        "double": _double,
        "float": _float,
        "date": read_date,
        "binary": binary_reader(spec),
    }[data_type]


def _string(value: object) -> object:
    if type(value) is not str:
        raise Misfit("type_mismatch")
    return value


def _boolean(value: object) -> object:
    if value is not True and value is not False:
        raise Misfit("type_mismatch")
    return value


_PARTS = re.compile(r"([+-]?)([0-9]*)\.?([0-9]*)(?:[eE]([+-]?)0*([0-9]*))?")
_EXPONENT_DIGITS_MAX = 12


def normal(text: str) -> tuple[str, str, int]:
    """Return sign, digits and exponent of a number: `digits` times 10^exponent.

    `digits` neither begins nor ends with a zero and is empty for zero. The work grows with the
    text, not with the number: an exponent beyond 12 digits is as good as 10^12.
    """
    match = _PARTS.fullmatch(text)
    assert match is not None, "only text that is a number comes here"
    sign, whole, fraction, exponent_sign, exponent_digits = match.groups(default="")
    if len(exponent_digits) > _EXPONENT_DIGITS_MAX:
        exponent_digits = "9" * _EXPONENT_DIGITS_MAX
    exponent = int(f"{exponent_sign}{exponent_digits or '0'}") - len(fraction)
    kept = (whole + fraction).rstrip("0")
    exponent += len(whole) + len(fraction) - len(kept)
    return sign, kept.lstrip("0"), exponent


def whole_number(text: str, bits: int) -> int:
    """Return the value of a number that is whole and fits `bits`, sign included."""
    sign, digits, exponent = normal(text)
    if not digits:
        return 0
    if exponent < 0:
        raise Misfit("not_exact", " (not a whole number)")
    limit = 1 << (bits - 1)
    if len(digits) + exponent > 19:
        raise Misfit("out_of_range", " (out of range)")
    number = int(f"{sign}{digits}{'0' * exponent}")
    if not -limit <= number < limit:
        raise Misfit("out_of_range", " (out of range)")
    return number


def _integer(bits: int) -> Callable[[object], object]:
    def read(value: object) -> object:
        if not isinstance(value, Number):
            raise Misfit("type_mismatch")
        return whole_number(value, bits)

    return read


_DECIMAL_TEXT = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")


def _decimal(data_type: Decimal) -> Callable[[object], object]:
    precision, scale = data_type.precision, data_type.scale

    def read(value: object) -> object:
        if not isinstance(value, str) or not _DECIMAL_TEXT.fullmatch(value):
            raise Misfit("type_mismatch")
        sign, digits, exponent = normal(value)
        if not digits:
            return PythonDecimal(f"0E-{scale}")
        if -exponent > scale:
            raise Misfit("not_exact", " (it would be rounded)")
        if len(digits) + exponent > precision - scale:
            raise Misfit("out_of_range", " (out of range)")
        return PythonDecimal(f"{sign}{digits}{'0' * (exponent + scale)}E-{scale}")

    return read


def _double(value: object) -> object:
    if not isinstance(value, Number):
        raise Misfit("type_mismatch")
    number = float(value)
    if isinf(number):
        raise Misfit("out_of_range", " (out of range)")
    return number


def _float(value: object) -> object:
    if not isinstance(value, Number):
        raise Misfit("type_mismatch")
    # Python has no 32-bit floats, and going through a double may round twice: Arrow's own parser
    # reads the text, as it does on the fast path.
    number: float = pa.scalar(str(value)).cast(pa.float32()).as_py()
    if isinf(number):
        raise Misfit("out_of_range", " (out of range)")
    return number


_DATE = re.compile(r"([0-9]{4})-([0-9]{2})-([0-9]{2})")
_TIMESTAMP = re.compile(
    r"(?P<date>[0-9]{4}-[0-9]{2}-[0-9]{2})"
    r"(?:[T ](?P<h>[0-9]{2})(?::(?P<m>[0-9]{2})(?::(?P<s>[0-9]{2})(?:\.(?P<f>[0-9]+))?)?)?"
    r"(?P<zone>Z|(?P<zs>[+-])(?P<zh>[0-9]{2})(?::?(?P<zm>[0-9]{2}))?)?)?"
)
_EPOCH_DAY = date(1970, 1, 1).toordinal()


def read_date(value: object) -> int:
    """Return the day as days since 1970-01-01."""
    match = _DATE.fullmatch(value) if type(value) is str else None
    if match is None:
        raise Misfit("type_mismatch")
    try:
        return date(int(match[1]), int(match[2]), int(match[3])).toordinal() - _EPOCH_DAY
    except ValueError:
        raise Misfit("out_of_range", " (no such day)") from None


def timestamp_reader(*, zoned: bool, spec: DecodeSpec) -> Callable[[object], int]:
    """Return the reader of a timestamp column: from a JSON value to microseconds since 1970."""
    if spec.timestamp_format == "iso8601":
        return read_timestamp if zoned else _read_timestamp_ntz
    factor = {"epoch_s": 1_000_000, "epoch_ms": 1_000, "epoch_us": 1}[spec.timestamp_format]

    def read(value: object) -> int:
        if not isinstance(value, Number):
            raise Misfit("type_mismatch")
        return _in_range(whole_number(value, 64) * factor)

    return read


def _in_range(micros: int) -> int:
    if not TIMESTAMP_MIN_US <= micros <= TIMESTAMP_MAX_US:
        raise Misfit("out_of_range", " (out of range)")
    return micros


def read_timestamp(value: object) -> int:
    """Return an ISO 8601 instant as microseconds since 1970; no zone means UTC."""
    return _read_iso(value)[0]


def _read_timestamp_ntz(value: object) -> int:
    micros, has_zone = _read_iso(value)
    if has_zone:
        raise Misfit("type_mismatch", " (with a zone)")
    return micros


def _read_iso(value: object) -> tuple[int, bool]:
    match = _TIMESTAMP.fullmatch(value) if type(value) is str else None
    if match is None:
        raise Misfit("type_mismatch")
    days = read_date(match["date"])
    hour, minute, second = int(match["h"] or 0), int(match["m"] or 0), int(match["s"] or 0)
    zone_hour, zone_minute = int(match["zh"] or 0), int(match["zm"] or 0)
    if hour > 23 or minute > 59 or second > 59 or zone_hour > 23 or zone_minute > 59:
        raise Misfit("out_of_range", " (no such time)")
    zone_minutes = (zone_hour * 60 + zone_minute) * (-1 if match["zs"] == "-" else 1)
    seconds = days * 86_400 + hour * 3_600 + (minute - zone_minutes) * 60 + second
    micros = seconds * 1_000_000 + int((match["f"] or "")[:6].ljust(6, "0"))
    return _in_range(micros), match["zone"] is not None


def binary_reader(spec: DecodeSpec) -> Callable[[object], bytes]:
    """Return the reader of a binary column: strict base64 or hex."""

    def read(value: object) -> bytes:
        if type(value) is not str:
            raise Misfit("type_mismatch")
        try:
            return (
                binascii.unhexlify(value)
                if spec.binary == "hex"
                else binascii.a2b_base64(value, strict_mode=True)
            )
        except ValueError:
            raise Misfit("type_mismatch", f" (not {spec.binary})") from None

    return read
