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

_MISSING_FILE = re.compile(r"Object at location (?P<path>\S+) not found")
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
        except OSError as error:
            raise StoreUnavailable(f"deltalake, version {version}: {_text(error)}") from error
        except DeltaError as error:
            raise _refusal(version, error) from error
        except Exception as error:
            # What fails while rows are read arrives as a bare Exception; ours are passed on.
            if type(error) is not Exception:
                raise
            raise _refusal(version, error) from error

    def _read(self, version: int) -> Iterator[pa.RecordBatch]:
        table: Any = DeltaTable(self._uri, version=version, storage_options=self._options)
        names = [field.name for field in table.schema().fields]
        wanted = [name for name in (TOPIC, PARTITION, OFFSET) if name in names]
        columns = ", ".join(f'"{name}"' for name in wanted)
        reader = QueryBuilder().register("audited", table).execute(f"SELECT {columns} FROM audited")  # noqa: S608  # the names are the three constants above
        for batch in reader:
            yield pa.record_batch(batch)


def storage_options(storage: StorageSettings) -> dict[str, str]:
    """Return `storage` as deltalake spells it; what is left out comes from the AWS chain."""
    options = {
        "aws_endpoint_url": storage.endpoint_url,
        "aws_region": storage.region,
        "aws_access_key_id": storage.access_key_id,
        "aws_secret_access_key": _secret(storage.secret_access_key),
        "aws_session_token": _secret(storage.session_token),
        "aws_virtual_hosted_style_request": "false" if storage.path_style else "true",
        "allow_http": "true" if storage.allow_http else "false",
        "connect_timeout": f"{storage.connect_timeout_ms} ms",
    }
    return {key: str(value) for key, value in options.items() if value is not None}


def _secret(value: SecretStr | None) -> str | None:
    return value.get_secret_value() if value is not None else None


def _refusal(version: int, error: Exception) -> Exception:
    missing = _MISSING_FILE.search(str(error))
    if missing is not None:
        name = missing["path"].rsplit("/", 1)[-1]
        return ObjectMissing(f"the log lists the file {name}, and the store does not have it")
    return TableRefused(f"deltalake cannot read version {version} of the table: {_text(error)}")


def _text(error: Exception) -> str:
    """Return the first words of deltalake's message, on one line and without colours."""
    return " ".join(_COLOUR.sub("", str(error)).split())[:300]
