"""Telemetry of one process: events as lines on a stream, figures in memory."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Literal, TextIO

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from delta_sink import telemetry as declared
from delta_sink.ports import Clock, Tag
from delta_sink.traces import Trace

SERIES_MAX = 10_000
"""How many series (a metric with one set of tags) are kept; figures of further ones are dropped."""
VALUE_LENGTH_MAX = 2_000
"""Longer texts in a field are cut: a line is for reading."""
SECRET_LENGTH_MIN = 4
"""A shorter secret is not looked for: it would blot out ordinary words."""

Series = tuple[str, tuple[tuple[str, Tag], ...]]
"""A metric's name and its tags, sorted."""


class Histogram(Struct, frozen=True):
    """`counts[i]` observations were at or below `buckets[i]` and above the one before; the last
    of `counts`, which is one longer, are those above every bucket."""

    buckets: tuple[float, ...]
    counts: tuple[int, ...]
    sum: float

    @property
    def count(self) -> int:
        """Return how many observations there were."""
        return sum(self.counts)


class Snapshot(Struct, frozen=True):
    """The figures as they stood at one moment."""

    counters: Mapping[Series, float]
    gauges: Mapping[Series, float]
    histograms: Mapping[Series, Histogram]

    def value(self, metric: str, **tags: Tag) -> float:
        """Return the value of a counter (0 if nothing was counted) or of a gauge."""
        key = (metric, tuple(sorted(tags.items())))
        if declared.METRICS[metric].kind == "counter":
            return self.counters.get(key, 0)
        return self.gauges[key]

    def total(self, metric: str) -> float:
        """Return the sum of a counter over all its tags."""
        return sum(value for (name, _), value in self.counters.items() if name == metric)


class _Buckets:
    """A histogram that is still filled."""

    __slots__ = ("buckets", "counts", "sum")

    def __init__(self, buckets: tuple[float, ...]) -> None:
        self.buckets = buckets
        self.counts = [0] * (len(buckets) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        index = 0
        for bound in self.buckets:
            if value <= bound:
                break
            index += 1
        self.counts[index] += 1
        self.sum += value


class LogTelemetry:
    """`Telemetry` that writes each event as one line and keeps the figures for `snapshot`.

    `format`: `human` is for a terminal (UTC; `12:00:01.234 committed v42: 12,345 rows, …`), `json`
    has one object a line: `ts`, `level`, `event`, `sink`, then the fields. Events below `level` are
    left out. `secrets` are texts that must never be seen: wherever one would stand, `***` stands.
    A line that cannot be written is counted in `lines_lost` and otherwise forgotten: a full disk
    under the log is no reason to lose a commit.
    """

    def __init__(
        self,
        stream: TextIO,
        *,
        format: Literal["human", "json"] = "human",  # noqa: A002 - named as the key `logs.format`
        level: str = "info",
        sink: str = "",
        clock: Clock,
        secrets: Sequence[str] = (),
        is_colored: bool = False,
    ) -> None:
        self._stream = stream
        self._format = format
        self._rank_min = _rank(level)
        self._sink = sink
        self._clock = clock
        self._secrets = tuple(secret for secret in secrets if len(secret) >= SECRET_LENGTH_MIN)
        self._is_colored = is_colored
        self._lock = threading.RLock()
        self._counters: dict[Series, float] = {}
        self._gauges: dict[Series, float] = {}
        self._histograms: dict[Series, _Buckets] = {}
        self._handler: logging.Handler | None = None
        self._on_trace: Callable[[Trace], None] | None = None
        self.lines_lost = 0
        self.series_lost = 0

    def event(self, name: str, level: str = "info", **fields: object) -> None:
        """Write one line; the level is the graver of `level` and the declared one."""
        event = declared.check_event(name, fields)
        grave = declared.graver(event.level, level)
        if _rank(grave) < self._rank_min:
            return
        wall_ms = self._clock.wall_ms()
        clean = {key: self._clean(value) for key, value in fields.items()}
        if self._format == "json":
            line = self._json(wall_ms, grave, name, clean)
        else:
            line = _human(wall_ms, grave, event, clean, is_colored=self._is_colored)
        self._write(line)

    def count(self, metric: str, amount: float = 1, **tags: Tag) -> None:
        """Add to a counter."""
        key = (metric, tuple(sorted(tags.items())) if tags else ())
        with self._lock:
            value = self._counters.get(key)
            if value is None:
                declared.check_metric(metric, "counter", tags)
                if self._is_full():
                    return
                value = 0
            assert amount >= 0, f"counter {metric} cannot fall by {amount}"
            self._counters[key] = value + amount

    def gauge(self, metric: str, value: float | None, **tags: Tag) -> None:
        """Set a gauge; with None it has no value any more, and is shown nowhere."""
        key = (metric, tuple(sorted(tags.items())) if tags else ())
        with self._lock:
            if value is None:
                declared.check_metric(metric, "gauge", tags)
                self._gauges.pop(key, None)
                return
            if key not in self._gauges:
                declared.check_metric(metric, "gauge", tags)
                if self._is_full():
                    return
            self._gauges[key] = value

    def observe(self, metric: str, value: float, **tags: Tag) -> None:
        """Add one observation to a histogram."""
        key = (metric, tuple(sorted(tags.items())) if tags else ())
        with self._lock:
            buckets = self._histograms.get(key)
            if buckets is None:
                declaration = declared.check_metric(metric, "histogram", tags)
                if self._is_full():
                    return
                buckets = self._histograms[key] = _Buckets(declaration.buckets)
            buckets.add(value)

    @property
    def is_tracing(self) -> bool:
        """Whether anybody wants traces."""
        return self._on_trace is not None

    def hand_traces_to(self, on_trace: Callable[[Trace], None] | None) -> None:
        """Let `on_trace`, from any thread, have each trace from now on; with None nobody."""
        self._on_trace = on_trace

    def trace(self, trace: Trace) -> None:
        """Hand on a trace, without secrets."""
        declared.check_trace(trace.name, trace.fields)
        on_trace = self._on_trace
        if on_trace is not None:
            fields = {name: self._clean(value) for name, value in trace.fields.items()}
            error = None if trace.error is None else self._text(trace.error)
            on_trace(replace(trace, fields=fields, error=error))

    def snapshot(self) -> Snapshot:
        """Return a copy of all figures, taken at one moment."""
        with self._lock:
            return Snapshot(
                dict(self._counters),
                dict(self._gauges),
                {
                    key: Histogram(value.buckets, tuple(value.counts), value.sum)
                    for key, value in self._histograms.items()
                },
            )

    def clean_text(self, text: str) -> str:
        """Return `text` as it may be shown outside: without secrets, and not endless."""
        return self._text(text)

    def capture_libraries(self, level: int = logging.WARNING) -> None:
        """Send what libraries log and warn, from `level` up, into the same stream.

        It takes the root logger over, for the whole process, until `release_libraries`. Below
        WARNING some libraries log whole requests with their credentials.
        """
        assert self._handler is None, "libraries are captured already"
        self._handler = _LibraryHandler(self, level)
        logging.getLogger().addHandler(self._handler)
        logging.captureWarnings(True)

    def release_libraries(self) -> None:
        """Undo `capture_libraries`; nothing happens if it was not called."""
        if self._handler is not None:
            logging.captureWarnings(False)
            logging.getLogger().removeHandler(self._handler)
            self._handler = None

    def _is_full(self) -> bool:
        size = len(self._counters) + len(self._gauges) + len(self._histograms)
        if size < SERIES_MAX:
            return False
        self.series_lost += 1
        return True

    def _clean(self, value: object) -> object:
        """Return the value as JSON knows it, without secrets; texts are cut to a bound."""
        if value is None or isinstance(value, bool | int | float):
            return value
        if isinstance(value, Mapping):
            return {self._text(str(key)): self._clean(item) for key, item in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            items = sorted(value, key=str) if isinstance(value, set | frozenset) else value
            return [self._clean(item) for item in items]
        return self._text(str(value))

    def _text(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        text = text.encode("utf-8", "backslashreplace").decode()  # lone surrogates
        return text if len(text) <= VALUE_LENGTH_MAX else text[:VALUE_LENGTH_MAX] + "…"

    def _json(self, wall_ms: int, level: str, name: str, fields: Mapping[str, object]) -> str:
        head = {"ts": _timestamp(wall_ms) + "Z", "level": level, "event": name, "sink": self._sink}
        return msgspec.json.encode({**head, **fields}).decode()

    def _write(self, line: str) -> None:
        try:
            with self._lock:
                self._stream.write(line + "\n")
                self._stream.flush()
        except (OSError, ValueError, RuntimeError):
            # ValueError: the stream is closed, or cannot encode. RuntimeError: a signal handler
            # logs while its own thread is inside of the stream.
            self.lines_lost += 1


class _LibraryHandler(logging.Handler):
    """Turns records of Python's logging into events."""

    def __init__(self, telemetry: LogTelemetry, level: int) -> None:
        super().__init__(level)
        self._telemetry = telemetry

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line for the record: its first line of text, and its error's last one."""
        level = "error" if record.levelno >= logging.ERROR else "warning"
        try:
            text = record.getMessage()
        except (TypeError, ValueError):  # the library's format does not fit its arguments
            text = str(record.msg)
        if record.name == "py.warnings":
            text = text.split("\n", 1)[0]
        if record.exc_info and record.exc_info[1] is not None:  # it may be False too
            error = record.exc_info[1]
            text = f"{text}: {type(error).__name__}: {error}"
        self._telemetry.event(declared.LIBRARY_LOGGED, level, logger=record.name, error=text)


def _rank(level: str) -> int:
    assert level in declared.LEVELS, f"level {level!r} is none of {', '.join(declared.LEVELS)}"
    return [*declared.LEVELS].index(level)


def _timestamp(wall_ms: int) -> str:
    moment = datetime.fromtimestamp(wall_ms // 1000, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{wall_ms % 1000:03d}"


# --- lines for people --------------------------------------------------------------------------

_COLORS = {"debug": "\x1b[2m", "info": "", "warning": "\x1b[33m", "error": "\x1b[31m"}


def _human(
    wall_ms: int,
    level: str,
    event: declared.Event,
    fields: Mapping[str, object],
    *,
    is_colored: bool,
) -> str:
    text = _SENTENCES.get(event.name, _sentence)(event, fields)
    if level != "info":
        text = f"{level}: {text}"
    text = "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
    time = _timestamp(wall_ms)[11:]
    if not is_colored:
        return f"{time} {text}"
    color = _COLORS[level]
    return f"\x1b[2m{time}\x1b[0m {color}{text}" + ("\x1b[0m" if color else "")


def _sentence(event: declared.Event, fields: Mapping[str, object]) -> str:
    """Return `fenced orders/3: offset_expected=7 …`: the name, the place, then the fields."""
    rest = dict(fields)
    place = ""
    if "topic" in rest:
        place = f" {rest.pop('topic')}"
        if "partition" in rest:
            place += f"/{rest.pop('partition')}"
    if "version" in rest:
        place += f" v{rest.pop('version')}"
    order = {name: index for index, name in enumerate(event.fields)}
    names = sorted(rest, key=lambda name: order.get(name, len(order)))
    shown = " ".join(f"{name}={_show(name, rest[name])}" for name in names)
    head = f"{event.name.replace('_', ' ')}{place}"
    return f"{head}: {shown}" if shown else head


def _show(name: str, value: object) -> str:
    if isinstance(value, list):
        return ", ".join(_show(name, item) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{key}={_show(name, item)}" for key, item in value.items())
    if isinstance(value, int) and not isinstance(value, bool):
        return size(value) if name == "bytes" else f"{value:,}"
    return str(value)


def _committed(_: declared.Event, fields: Mapping[str, object]) -> str:
    """Return `committed v42: 12,345 rows, 2 files, 1.2 MB, 3 partitions in 41 ms`."""
    parts = [
        _amount(fields, "rows", "row"),
        _amount(fields, "files", "file"),
        size(fields["bytes"]) if isinstance(fields.get("bytes"), int) else "",
        _amount(fields, "partitions", "partition"),
        _amount(fields, "dead_letters", "dead letter") if fields.get("dead_letters") else "",
        _amount(fields, "skipped", "skipped record") if fields.get("skipped") else "",
    ]
    text = f"committed v{fields.get('version')}: {', '.join(part for part in parts if part)}"
    if "duration_ms" in fields:
        text += f" in {_show('duration_ms', fields['duration_ms'])} ms"
    if "freshness_ms" in fields:
        text += f", {_show('freshness_ms', fields['freshness_ms'])} ms old"
    attempt = fields.get("attempt")
    return f"{text} (try {attempt})" if isinstance(attempt, int) and attempt > 1 else text


def _amount(fields: Mapping[str, object], name: str, singular: str) -> str:
    value = fields.get(name)
    if isinstance(value, list):
        value = len(value)
    if not isinstance(value, int):
        return ""
    return f"{value:,} {singular}" if value == 1 else f"{value:,} {singular}s"


def size(value: object) -> str:
    """Return a number of bytes as a person reads it: 999 B, 1.2 MB."""
    assert isinstance(value, int), value
    if value < 1000:
        return f"{value} B"
    amount = float(value)
    for unit in ("kB", "MB", "GB"):
        amount /= 1000
        if amount < 999.95:
            return f"{amount:.1f} {unit}"
    return f"{amount / 1000:.1f} TB"


def _plain(event: declared.Event, fields: Mapping[str, object]) -> str:
    """Return the one field that says it all, after the event's name."""
    text = next(iter(fields.values()), "")
    return f"{event.name.replace('_', ' ')}: {text}"


_SENTENCES: dict[str, Callable[[declared.Event, Mapping[str, object]], str]] = {
    declared.TABLE_COMMITTED: _committed,
    declared.WAITING: _plain,
}
