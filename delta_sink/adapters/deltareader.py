"""Reading rows through deltalake, which shares no code with what wrote them.

Only the audit reads this way. deltalake's query engine streams: one batch is held at a time, and
of the files only the columns that are asked for are fetched. Opening takes memory for the list of
files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
from deltalake import DeltaTable, QueryBuilder
from deltalake.exceptions import DeltaError
from pydantic import SecretStr

from delta_sink.audit_rows import OFFSET, PARTITION, TOPIC
from delta_sink.errors import ObjectMissing, StoreUnavailable, TableRefused
from delta_sink.settings import StorageSettings

READ_RETRIES_MAX = 2
"""Tries after the first one: deltalake only reads here, and the audit can be run again."""

_MISSING_FILE = re.compile(r"Object at location (?P<path>\S+) not found")
_NO_ANSWER = re.compile(r"error sending request|retry_timeout|Generic \w+ error|HTTP error")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class DeltaRows:
    """`RowReader` on the table at `uri`: a folder, `file://…` or `s3://bucket/path`.

    An interpreter that ends right after deltalake has read may abort: read every iterator to its
    end, drop it, and leave the process by `os._exit` once everything is printed.
    """

    def __init__(self, uri: str, storage: StorageSettings) -> None:
        self._uri = uri
        self._options = storage_options(storage) if "://" in uri else {}

    def offsets(self, version: int) -> Iterator[pa.RecordBatch]:
        """Yield `_kafka_topic`, `_kafka_partition`, `_kafka_offset` of all rows at `version`."""
        try:
            yield from self._read(version)
        except (DeltaError, pa.ArrowException, OSError) as error:
            raise _as_ours(version, error) from error

    def _read(self, version: int) -> Iterator[pa.RecordBatch]:
        table: Any = DeltaTable(self._uri, version=version, storage_options=self._options)
        names = [field.name for field in table.schema().fields]
        wanted = [name for name in (TOPIC, PARTITION, OFFSET) if name in names]
        columns = ", ".join(f'"{name}"' for name in wanted)
        reader = QueryBuilder().register("audited", table).execute(f"SELECT {columns} FROM audited")  # noqa: S608  # the names are the three constants above
        # Through the C stream the interpreter lock is free while deltalake waits for the store;
        # its own iterator holds the lock, which stops every other thread (seen with 1.6.6).
        yield from pa.RecordBatchReader.from_stream(reader)


def storage_options(storage: StorageSettings) -> dict[str, str]:
    """Return `storage` as deltalake spells it; what is left out comes from the AWS chain."""
    options = {
        # Under this name, or the variable AWS_ENDPOINT_URL_S3 would go before the configuration.
        "aws_endpoint_url_s3": storage.endpoint_url,
        "aws_region": storage.region,
        "aws_access_key_id": storage.access_key_id,
        "aws_secret_access_key": _secret(storage.secret_access_key),
        "aws_session_token": _secret(storage.session_token),
        "aws_virtual_hosted_style_request": "false" if storage.path_style else "true",
        "allow_http": "true" if storage.allow_http else "false",
        "max_retries": READ_RETRIES_MAX,
        "timeout": f"{storage.request_timeout_ms} ms",
    }
    return {key: str(value) for key, value in options.items() if value is not None}


def _secret(value: SecretStr | None) -> str | None:
    return value.get_secret_value() if value is not None else None


def _as_ours(version: int, error: Exception) -> Exception:
    """Return the error of ours that says what a caller can do about one of deltalake's."""
    missing = _MISSING_FILE.search(str(error))
    if missing is not None:
        name = missing["path"].rsplit("/", 1)[-1]
        return ObjectMissing(f"the log lists the file {name}, and the store does not have it")
    sentence = f"deltalake cannot read version {version} of the table: {_text(error)}"
    if _NO_ANSWER.search(str(error)):
        return StoreUnavailable(sentence)
    return TableRefused(sentence)


def _text(error: Exception) -> str:
    """Return the first words of deltalake's message, on one line and without colours."""
    return " ".join(_COLOUR.sub("", str(error)).split())[:300]
