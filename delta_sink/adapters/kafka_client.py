"""What every client of librdkafka shares: how it is made, what it may say, which errors are final.

librdkafka prints to stderr, reports errors through callbacks and answers with some three hundred
codes. Here that becomes telemetry events and three outcomes: wait, ask again, or stop with one
sentence.
"""

from __future__ import annotations

import ctypes
import logging
import re
from collections.abc import Callable, Mapping
from typing import Final, TypeVar

from confluent_kafka import KafkaError, KafkaException

from delta_sink.errors import ConfigError, FatalError
from delta_sink.ports import Telemetry
from delta_sink.telemetry import LIBRARY_LOGGED

C = TypeVar("C")

GROUP_KEYS: Final = frozenset({"group.instance.id", "group.protocol", "group.remote.assignor"})
"""Keys that are a group member's: left out where a consumer's handle is used for a question."""

_DIGITS: Final = re.compile(r"\d+")
_SAME_LINE_S: Final = 60.0
_LINES_KEPT_MAX: Final = 200

_SECRET_WORDS: Final = ("password", "secret", "key.pem", "oauthbearer.config", "token", "jaas")

_REFUSALS: Final = frozenset(
    {
        KafkaError._AUTHENTICATION,
        KafkaError._FATAL,
        KafkaError._FENCED,
        KafkaError._INVALID_ARG,
        KafkaError._UNSUPPORTED_FEATURE,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
        KafkaError.FENCED_INSTANCE_ID,
        KafkaError.GROUP_AUTHORIZATION_FAILED,
        KafkaError.GROUP_MAX_SIZE_REACHED,
        KafkaError.ILLEGAL_SASL_STATE,
        KafkaError.INCONSISTENT_GROUP_PROTOCOL,
        KafkaError.INVALID_CONFIG,
        KafkaError.INVALID_GROUP_ID,
        KafkaError.INVALID_SESSION_TIMEOUT,
        KafkaError.TOPIC_EXCEPTION,
        KafkaError.SASL_AUTHENTICATION_FAILED,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
        KafkaError.UNRELEASED_INSTANCE_ID,
        KafkaError.UNSUPPORTED_ASSIGNOR,
        KafkaError.UNSUPPORTED_SASL_MECHANISM,
        KafkaError.UNSUPPORTED_VERSION,
    }
)
"""Codes after which no later try of this process can succeed."""

_TLS_REFUSALS: Final = ("certificate", "alert", "verify failed", "no protocols available")


def is_refusal(error: KafkaError) -> bool:
    """Return whether `error` is a definite no: credentials, rights, a group that will not have us.

    A TLS failure is one only if the handshake was refused; a connection that broke is not.
    """
    if error.fatal() or error.code() in _REFUSALS:
        return True
    if error.code() == KafkaError._SSL:
        text = error.str().lower()
        return any(word in text for word in _TLS_REFUSALS)
    return False


def refusal(doing: str, error: KafkaError) -> FatalError:
    """Return the error with which the process stops: what was being done, and Kafka's answer."""
    return FatalError(f"kafka: {doing}: refused: {said(error)}")


def said(error: KafkaError) -> str:
    """Return Kafka's own words for `error` as one line, with its code's name."""
    text = " ".join(error.str().split())
    return f"{text} ({error.name()})"


def make_client(
    kind: Callable[..., C],
    settings: Mapping[str, object],
    telemetry: Telemetry | None,
    hear: Callable[[str], None] | None = None,
) -> C:
    """Return a client of `kind` whose log lines go to `telemetry`, or nowhere without one.

    `hear` is called with each line, in the thread that polls the client.

    Raises:
        ConfigError: librdkafka knows no such key or refuses its value.
    """
    try:
        return kind(dict(settings), logger=_logger(telemetry, hear))
    except KafkaException as error:
        text = said(error.args[0])
    except (TypeError, ValueError) as error:
        text = str(error)
    raise ConfigError([f"kafka: {_without_secrets(text, settings)}"])


class _ToTelemetry(logging.Handler):
    """Turns librdkafka's log records into events; the same line again only after a minute.

    While no broker answers, librdkafka says so many times a second.
    """

    def __init__(self, telemetry: Telemetry, hear: Callable[[str], None] | None) -> None:
        super().__init__(logging.DEBUG)
        self._telemetry = telemetry
        self._hear = hear
        self._said_s: dict[str, float] = {}

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if self._hear is not None:
            self._hear(text)
        if text.startswith("CONFWARN"):
            return  # one file serves consumer and producer: each is told keys of the other
        kind = _DIGITS.sub("", text)
        if record.created - self._said_s.get(kind, 0.0) < _SAME_LINE_S:
            return
        if len(self._said_s) >= _LINES_KEPT_MAX:
            self._said_s.clear()
        self._said_s[kind] = record.created
        level = "warning" if record.levelno >= logging.ERROR else "debug"
        self._telemetry.event(
            LIBRARY_LOGGED, level, logger="kafka", category=text.split(" ", 1)[0], error=text
        )


def keep_for_ever(client: object) -> None:
    """Never free `client`: freeing is closing, which may wait for ever. Its threads go on."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(client))


def _logger(telemetry: Telemetry | None, hear: Callable[[str], None] | None) -> logging.Logger:
    # A logger of its own, in no hierarchy: what a program configures for the root logger must
    # not make librdkafka's lines appear twice.
    logger = logging.Logger("delta_sink.kafka")  # noqa: LOG001 - see the comment above
    logger.addHandler(logging.NullHandler() if telemetry is None else _ToTelemetry(telemetry, hear))
    return logger


def _without_secrets(text: str, settings: Mapping[str, object]) -> str:
    for key, value in settings.items():
        if any(word in key for word in _SECRET_WORDS) and isinstance(value, str) and value:
            text = text.replace(value, "***")
    return text
