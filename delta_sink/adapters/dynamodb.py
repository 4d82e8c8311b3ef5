"""Locks in a DynamoDB table: for workers on several machines."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from delta_sink.errors import FatalError, RetriableError
from delta_sink.ports import Item, Scalar

if TYPE_CHECKING:
    from mypy_boto3_dynamodb import DynamoDBClient
    from mypy_boto3_dynamodb.type_defs import AttributeValueTypeDef, TableDescriptionTypeDef

REQUEST_TIMEOUT_MS = 3_000
"""boto3's own is 60 s, longer than a lease; a call that lasts must fail before its lease ends."""
TABLE_READY_MAX_S = 60
NUMBER_DIGITS_MAX = 38

_RETRIABLE_CODES = frozenset(
    {
        "InternalServerError",
        "ItemCollectionSizeLimitExceededException",
        "LimitExceededException",
        "ProvisionedThroughputExceededException",
        "RequestLimitExceeded",
        "ServiceUnavailable",
        "Throttling",
        "ThrottlingException",
        "TransactionConflictException",
    }
)


class DynamoLeases:
    """A `LeaseStore` in the table `table_name`: hash key `key`, the rest in one map `attributes`.

    The whole map is compared by the condition of each write, and reads of one item are consistent.
    A client is shared by the threads.
    """

    def __init__(self, client: DynamoDBClient, table_name: str) -> None:
        self._client = client
        self._table_name = table_name

    @classmethod
    def connect(
        cls,
        *,
        table_name: str,
        region: str | None = None,
        endpoint_url: str | None = None,
        request_timeout_ms: int = REQUEST_TIMEOUT_MS,
    ) -> DynamoLeases:
        """Return the store, through boto3; nothing is sent yet.

        What is None comes from boto3's chain: `AWS_REGION`, `AWS_ENDPOINT_URL_DYNAMODB`, the
        credentials.

        Raises:
            FatalError: boto3 is not installed, or does not take the region or the endpoint.
        """
        return cls(_client(region, endpoint_url, request_timeout_ms), table_name)

    def __repr__(self) -> str:
        return f"DynamoLeases({self._table_name!r})"

    def create_table(self) -> None:
        """Return once the table is there and ready; it is made, billed by request, if need be.

        Raises:
            FatalError: it may not be made, or is there with another key.
            RetriableError: no usable answer, or it was not ready within a minute.
        """
        table = self._describe()
        if table is None:
            # Another process may make it at the same moment.
            with self._answering(), suppress(self._client.exceptions.ResourceInUseException):
                self._client.create_table(
                    TableName=self._table_name,
                    KeySchema=[{"AttributeName": "key", "KeyType": "HASH"}],
                    AttributeDefinitions=[{"AttributeName": "key", "AttributeType": "S"}],
                    BillingMode="PAY_PER_REQUEST",
                )
        if table is None or table["TableStatus"] == "CREATING":
            with self._answering():
                self._client.get_waiter("table_exists").wait(
                    TableName=self._table_name,
                    WaiterConfig={"Delay": 1, "MaxAttempts": TABLE_READY_MAX_S},
                )
            table = self._describe()
        if table is None:
            raise RetriableError(f"DynamoDB table {self._table_name}: gone as soon as it was made")
        key = [(part["AttributeName"], part["KeyType"]) for part in table["KeySchema"]]
        if key != [("key", "HASH")]:
            raise FatalError(
                f"DynamoDB table {self._table_name}: wanted the one key 'key' (HASH), got {key}"
            )

    def _describe(self) -> TableDescriptionTypeDef | None:
        with self._answering(), suppress(self._client.exceptions.ResourceNotFoundException):
            return self._client.describe_table(TableName=self._table_name)["Table"]
        return None

    def get(self, key: str) -> Item | None:
        """Return the item as the last write left it, or None."""
        with self._answering():
            answer = self._client.get_item(
                TableName=self._table_name, Key={"key": {"S": key}}, ConsistentRead=True
            )
        found = answer.get("Item")
        return None if found is None else _item(found)

    def put(self, item: Item, expected: Item | None) -> bool:
        """Write `item` if what is stored equals `expected` (None: nothing); say whether."""
        assert expected is None or expected.key == item.key, (item.key, expected)
        condition: dict[str, Any] = {
            "ConditionExpression": "attribute_not_exists(#key)",
            "ExpressionAttributeNames": {"#key": "key"},
        }
        if expected is not None:
            condition = {
                "ConditionExpression": "#attributes = :expected",
                "ExpressionAttributeNames": {"#attributes": "attributes"},
                "ExpressionAttributeValues": {":expected": _map(expected.attributes)},
            }
        try:
            with self._answering():
                self._client.put_item(
                    TableName=self._table_name,
                    Item={"key": {"S": item.key}, "attributes": _map(item.attributes)},
                    **condition,
                )
        except _ConditionFailed:
            return False
        return True

    def scan(self, prefix: str) -> list[Item]:
        """Return the items whose key begins with `prefix`, by key. The whole table is read."""
        found: list[Item] = []
        with self._answering():
            pages = self._client.get_paginator("scan").paginate(TableName=self._table_name)
            for page in pages:
                found += [_item(one) for one in page["Items"] if one["key"]["S"].startswith(prefix)]
        return sorted(found, key=lambda item: item.key)

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """Turn every error of boto3 in the block into what the port says."""
        from botocore.exceptions import BotoCoreError, ClientError

        where = f"DynamoDB table {self._table_name}"
        try:
            yield
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", "no code"))
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            if code == "ConditionalCheckFailedException":
                raise _ConditionFailed(where) from error
            if code in _RETRIABLE_CODES or status >= 500:
                raise RetriableError(f"{where}: {code}") from error
            if code == "ResourceNotFoundException":
                raise FatalError(f"{where}: there is no such table; `init` makes it") from error
            raise FatalError(f"{where}: {code}") from error
        except BotoCoreError as error:
            kind = type(error).__name__
            if kind in _FATAL_KINDS:
                raise FatalError(f"{where}: {kind}: {error}") from error
            raise RetriableError(f"{where}: {kind}") from error


class _ConditionFailed(FatalError):
    """The item is not the expected one."""


_FATAL_KINDS = frozenset(
    {
        "NoCredentialsError",
        "PartialCredentialsError",
        "ProfileNotFound",
        "ParamValidationError",
        "SSLError",
        "UnknownServiceError",
    }
)


def _client(region: str | None, endpoint_url: str | None, timeout_ms: int) -> DynamoDBClient:
    try:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError
    except ImportError as error:
        raise FatalError(
            "locks in DynamoDB need boto3: pip install 'delta-sink[dynamodb]'"
        ) from error
    try:
        client: DynamoDBClient = boto3.session.Session().client(
            "dynamodb",
            # boto3 itself knows only AWS_DEFAULT_REGION; the store of the table takes both.
            region_name=region or os.environ.get("AWS_REGION"),
            endpoint_url=endpoint_url,
            config=Config(
                connect_timeout=timeout_ms / 1000,
                read_timeout=timeout_ms / 1000,
                retries={"total_max_attempts": 1, "mode": "standard"},
            ),
        )
    except (BotoCoreError, ValueError) as error:
        raise FatalError(f"DynamoDB cannot be reached as configured: {error}") from error
    return client


def _map(attributes: Mapping[str, Scalar]) -> AttributeValueTypeDef:
    return {"M": {name: _value(value) for name, value in attributes.items()}}


def _value(value: Scalar) -> AttributeValueTypeDef:
    if isinstance(value, bool):  # before int, which it also is
        return {"BOOL": value}
    if isinstance(value, int):
        assert abs(value) < 10**NUMBER_DIGITS_MAX, f"DynamoDB keeps {NUMBER_DIGITS_MAX} digits"
        return {"N": str(value)}
    return {"S": value}


def _item(found: Mapping[str, Any]) -> Item:
    attributes = found.get("attributes", {}).get("M")
    if attributes is None:
        raise FatalError(f"DynamoDB item {found['key']['S']}: it is no lock; whose table is this?")
    return Item(found["key"]["S"], {name: _scalar(value) for name, value in attributes.items()})


_READERS: Mapping[str, Callable[[Any], Scalar]] = {"BOOL": bool, "N": int, "S": str}


def _scalar(value: Mapping[str, Any]) -> Scalar:
    ((kind, content),) = value.items()
    return _READERS[kind](content)
