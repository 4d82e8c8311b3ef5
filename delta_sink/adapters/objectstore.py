"""S3 and everything that speaks like it, and the choice of the store by the table's URI.

What obstore says is told apart by the HTTP status in its message, not by its exception types:
measured with 0.12, a time-out, a 500, a 400 and a redirect are all one `GenericError`, and a
listing gives that for a 403 too; 409 and 412 of a conditional PUT are both "already exists".
`tests/contract/test_s3_answers.py` goes through every one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, NoReturn
from urllib.parse import unquote

import obstore
from msgspec import Struct
from obstore.exceptions import BaseError
from obstore.store import S3Store as ObstoreS3

from delta_sink.adapters.localdisk import LocalDisk, check_path
from delta_sink.errors import ConfigError, ObjectMissing, StoreRefused, StoreUnavailable
from delta_sink.ports import Created, Exists, ObjectInfo, ObjectStore, StoredObject

REQUEST_TIMEOUT_MS = 10_000
"""How long one small request may take: connecting, sending, waiting and receiving."""
CONNECT_TIMEOUT_MS_MAX = 5_000
SMALL_BYTES_MAX = 4 * 1024 * 1024
"""A larger body gets the time below on top, in one request: 60 s carry 500 MB at 9 MB/s."""
BODY_TIMEOUT_MS = 60_000
LIST_PAGE = 1_000
POOL_IDLE_TIMEOUT_MS = 15_000
"""Shorter than the time after which servers drop idle connections; a PUT would fail on those."""


@dataclass(frozen=True, slots=True)
class StorageOptions:
    """How the store is reached; what is None comes from the environment and the AWS chain.

    `path_style`: the bucket stands in the path, not in the host name. `allow_http`: whether an
    endpoint that begins with `http://` may be used. `fsync` is for local disk, the rest for S3.
    """

    endpoint_url: str | None = None
    region: str | None = None
    access_key_id: str | None = None
    secret_access_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)
    path_style: bool = True
    allow_http: bool = True
    fsync: bool = True
    request_timeout_ms: int = REQUEST_TIMEOUT_MS


def open_store(uri: str, storage: StorageOptions, env: Mapping[str, str]) -> ObjectStore:
    """Return the store of the table at `uri`; nothing is asked of it yet.

    `s3://bucket/folder` and `s3a://…` are S3; `file:///folder` and a path are local disk.

    Raises:
        ConfigError: the URI or the options cannot be meant so.
    """
    if "://" not in uri:
        return LocalDisk(uri, fsync=storage.fsync)
    scheme, rest = uri.split("://", 1)
    if scheme in ("s3", "s3a"):
        return S3Store(uri, storage=storage, env=env)
    if scheme == "file":
        host, slash, path = rest.partition("/")
        if host in ("", "localhost") and path:
            return LocalDisk(slash + unquote(path), fsync=storage.fsync)
        raise ConfigError([f"table.uri: got {uri!r}, wanted file:///folder"])
    raise ConfigError(
        [f"table.uri: got the scheme {scheme!r}, wanted s3, s3a, file or the path of a folder"]
    )


class S3Store:
    """An `ObjectStore` in a bucket. Each call is one request (a listing: one a page), never retried.

    Credentials are those of `storage`, else of the process: the variables `AWS_ACCESS_KEY_ID` and
    so on, a web identity (`AWS_WEB_IDENTITY_TOKEN_FILE`), a container's or a machine's role; with
    `AWS_PROFILE`, boto3's chain. The endpoint is that of `storage`, else `AWS_ENDPOINT_URL_S3`,
    else `AWS_ENDPOINT_URL`, else AWS's own. An own certificate authority is taken from the file
    that the process's `SSL_CERT_FILE` names.
    """

    def __init__(self, uri: str, *, storage: StorageOptions, env: Mapping[str, str]) -> None:
        """Prepare the clients; nothing is sent.

        Raises:
            ConfigError: no bucket, half of a credential, HTTP where it is not allowed.
        """
        bucket, _, folder = uri.split("://", 1)[1].partition("/")
        self._place = f"s3://{bucket}/{folder}".rstrip("/")
        self._bucket = bucket
        self._folder = folder.strip("/")
        problems = _problems(uri, bucket, storage)
        if problems:
            raise ConfigError(problems)
        config, endpoint = _config(bucket, storage, env)
        if endpoint is not None and endpoint.startswith("http://") and not storage.allow_http:
            raise ConfigError(
                [f"table.storage.endpoint_url: got {endpoint}, but allow_http is false"]
            )
        credentials = _credentials(storage, env)

        def client(timeout_ms: int, **options: timedelta) -> ObstoreS3:
            connect_ms = min(CONNECT_TIMEOUT_MS_MAX, storage.request_timeout_ms)
            return ObstoreS3(
                bucket,
                prefix=self._folder or None,
                config=config,
                credential_provider=credentials,
                client_options={
                    "allow_http": storage.allow_http,
                    "timeout": timedelta(milliseconds=timeout_ms),
                    "connect_timeout": timedelta(milliseconds=connect_ms),
                    "pool_idle_timeout": timedelta(milliseconds=POOL_IDLE_TIMEOUT_MS),
                    **options,
                },
                # obstore's own default sends a PUT again for up to 180 s: it could land minutes
                # after its caller was told that it had failed.
                retry_config={"max_retries": 0, "retry_timeout": timedelta(seconds=1)},
            )

        small_ms = storage.request_timeout_ms
        self._small = client(small_ms)
        self._upload = client(small_ms + BODY_TIMEOUT_MS)
        # A download may take long as long as it moves. An upload cannot have this time-out:
        # reqwest counts the whole sending of the body into it.
        self._download = client(
            small_ms + BODY_TIMEOUT_MS, read_timeout=timedelta(milliseconds=small_ms)
        )

    def __repr__(self) -> str:
        return f"S3Store({self._place!r})"

    def put(self, path: str, data: bytes | memoryview) -> str:
        """Store `data` under `path`, in place of what may have been there.

        Raises:
            StoreUnavailable: no usable answer; the object may have landed.
            StoreRefused: a definite no; nothing landed.
        """
        with self._answering("put", path):
            result = obstore.put(self._writer(data), path, data, use_multipart=False)
            return self._e_tag(result["e_tag"])

    def put_if_absent(self, path: str, data: bytes | memoryview) -> Created | Exists:
        """Store `data` if nothing has that name: `If-None-Match: *`.

        Raises:
            StoreUnavailable: no usable answer; the object may land later. Send the same again.
            StoreRefused: a definite no; nothing landed.
        """
        try:
            with self._answering("put", path):
                result = obstore.put(
                    self._writer(data), path, data, mode="create", use_multipart=False
                )
                return Created(self._e_tag(result["e_tag"]))
        except _AlreadyThere:
            return Exists()

    def get(self, path: str) -> StoredObject:
        """Return the object. Raises ObjectMissing if there is none."""
        with self._answering("get", path):
            result = obstore.get(self._download, path)
            return StoredObject(bytes(result.bytes()), self._e_tag(result.meta["e_tag"]))

    def get_range(self, path: str, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset` on. Raises ObjectMissing if there is none.

        Raises:
            StoreRefused: the object ends before that.
        """
        assert offset >= 0, offset
        assert length >= 0, length
        if length == 0:  # S3 has no empty ranges
            return b""
        with self._answering("get", path):
            data = bytes(obstore.get_range(self._download, path, start=offset, length=length))
        if len(data) != length:
            raise StoreRefused(
                f"cannot get {path} in {self._place}: wanted {length} bytes from {offset},"
                f" it has {len(data)} there"
            )
        return data

    def list(self, prefix: str, start_after: str | None = None) -> list[ObjectInfo]:
        """Return the objects below the folder `prefix` ("" is all), in S3's order."""
        folder = prefix.strip("/")
        found: list[ObjectInfo] = []
        with self._answering("list", folder or "the table"):
            pages = obstore.list(
                self._small, folder or None, offset=start_after, chunk_size=LIST_PAGE
            )
            for page in pages:
                found.extend(self._info(entry) for entry in page)
        # Servers that ignore start-after, or sort otherwise, are set right here.
        kept = [info for info in found if start_after is None or info.path > start_after]
        return sorted(kept, key=lambda info: info.path)

    def delete(self, path: str) -> None:
        """Remove the object; one that is not there is no error."""
        try:
            with self._answering("delete", path):
                obstore.delete(self._small, path)
        except ObjectMissing:
            return

    def _writer(self, data: bytes | memoryview) -> ObstoreS3:
        return self._small if len(data) <= SMALL_BYTES_MAX else self._upload

    def _info(self, entry: Mapping[str, Any]) -> ObjectInfo:
        modified: datetime = entry["last_modified"]
        return ObjectInfo(
            entry["path"],
            entry["size"],
            round(modified.timestamp() * 1000),
            self._e_tag(entry["e_tag"]),
        )

    def _e_tag(self, e_tag: str | None) -> str:
        if not e_tag:
            raise StoreRefused(f"{self._place}: {_REFUSALS['MissingEtag']}")
        return e_tag

    @contextmanager
    def _answering(self, verb: str, path: str) -> Iterator[None]:
        """Turn every error of obstore in the block into what the port says."""
        if verb != "list":
            check_path(path)
        try:
            yield
        except (BaseError, FileNotFoundError) as error:
            self._raise(verb, path, error)

    def _raise(self, verb: str, path: str, error: Exception) -> NoReturn:
        answer = Answer.of(str(error))
        where = f"cannot {verb} {path} in {self._place}"
        if answer.url and self._bucket not in answer.url:
            kind = StoreUnavailable if answer.is_unusable else StoreRefused
            raise kind(f"{where}: no credentials could be had: {answer}") from error
        if verb == "put" and answer.status in (304, 409, 412):
            raise _AlreadyThere(f"{where}: {answer}") from error
        if answer.status == 404 and verb in ("get", "delete") and answer.code != "NoSuchBucket":
            raise ObjectMissing(f"no object {path} in {self._place}") from error
        if answer.is_unusable:
            raise StoreUnavailable(f"{where}: {answer}") from error
        status = answer.status or 0
        hint = _HINTS.get((verb, status)) or _HINTS.get(("any", status), "")
        raise StoreRefused(f"{where}: {answer}{hint}") from error


class _AlreadyThere(StoreUnavailable):
    """The condition of a PUT failed. Of a PUT without one (a 409) it is no usable answer."""


_HINTS = {
    ("any", 301): "; is the bucket in another region?",
    ("any", 307): "; is the bucket in another region?",
    ("get", 403): "; without the right to list the bucket S3 says so for missing objects too",
}
_RETRIABLE_STATUS = frozenset({408, 409, 425, 429})
_RETRIABLE_CODES = frozenset({"RequestTimeout", "SlowDown", "InternalError", "Throttling"})
_REFUSALS = {
    "Builder": "the endpoint's address is refused",
    "BareRedirect": "it answers with a redirect; is the bucket in another region?",
    "MissingEtag": "it sends no ETag, which commits need",
}
_KINDS = {
    "Timeout": "no answer in time",
    "Connect": "no connection",
    "Request": "the connection broke",
    "Interrupted": "the connection broke",
    "Decode": "the answer cannot be read",
}


class Answer(Struct, frozen=True):
    """What an error of obstore says: the HTTP status and S3's own code, if there was an answer."""

    status: int | None
    code: str
    url: str
    kind: str

    @classmethod
    def of(cls, message: str) -> Answer:
        """Return the parts of obstore's message; what the server wrote beside its code is left."""
        status = re.search(r"Server returned non-2xx status code: (\d+)", message)
        code = re.search(r"<Code>([A-Za-z0-9]{1,60})</Code>", message)
        url = re.search(r"Error performing [A-Z]+ (\S+) in ", message)
        kind = re.search(r"\bkind: ([A-Z]\w+)|\b(MissingEtag|BareRedirect)\b", message)
        return cls(
            int(status[1]) if status else None,
            code[1] if code else "",
            url[1] if url else "",
            (kind[1] or kind[2]) if kind else "",
        )

    @property
    def is_unusable(self) -> bool:
        """Return whether it says nothing about what the store did: no definite no."""
        if self.status is None:
            return self.kind not in _REFUSALS
        if self.code in _RETRIABLE_CODES or self.status in _RETRIABLE_STATUS:
            return True
        return self.status >= 500 and self.status != 501  # 501: it never will

    def __str__(self) -> str:
        if self.status is not None:
            return f"HTTP status {self.status} {self.code}".rstrip()
        return _REFUSALS.get(self.kind) or _KINDS.get(self.kind, "no usable answer")


def _problems(uri: str, bucket: str, storage: StorageOptions) -> list[str]:
    problems = []
    if not bucket:
        problems.append(f"table.uri: got {uri!r}, wanted s3://bucket/folder")
    if (storage.access_key_id is None) != (storage.secret_access_key is None):
        problems.append("table.storage: access_key_id and secret_access_key belong together")
    if storage.session_token is not None and storage.access_key_id is None:
        problems.append("table.storage: session_token without access_key_id")
    return problems


def _config(
    bucket: str, storage: StorageOptions, env: Mapping[str, str]
) -> tuple[dict[str, Any], str | None]:
    """Return obstore's configuration and the endpoint, if it is not AWS's own."""
    config: dict[str, Any] = {
        "virtual_hosted_style_request": not storage.path_style,
        "conditional_put": "etag",
        "disable_bulk_delete": True,  # one DELETE; not every store has the bulk request
    }
    region = storage.region or env.get("AWS_REGION") or env.get("AWS_DEFAULT_REGION")
    if region:
        config["region"] = region
    endpoint = storage.endpoint_url or env.get("AWS_ENDPOINT_URL_S3") or env.get("AWS_ENDPOINT_URL")
    if endpoint:
        endpoint = endpoint.rstrip("/")
        if not storage.path_style:
            endpoint = endpoint.replace("://", f"://{bucket}.", 1)
        # Under this name, or the variable AWS_ENDPOINT_URL_S3 would go before the configuration.
        config["aws_endpoint_url_s3"] = endpoint
    return config, endpoint


def _credentials(
    storage: StorageOptions, env: Mapping[str, str]
) -> Callable[[], dict[str, str | None]] | None:
    """Return who gives the credentials; None leaves it to obstore's own chain."""
    if storage.access_key_id is not None:
        # Not through obstore's configuration: there, a session token in the environment would be
        # sent along with these keys (measured), and every request refused.
        given = {
            "access_key_id": storage.access_key_id,
            "secret_access_key": storage.secret_access_key,
            "token": storage.session_token,
            "expires_at": None,
        }
        return lambda: given
    profile = env.get("AWS_PROFILE")
    if profile and not env.get("AWS_ACCESS_KEY_ID"):
        return _profile(profile)
    return None


def _profile(profile: str) -> Callable[[], dict[str, str | None]]:
    """Return boto3's credentials of a profile, which obstore's own chain does not know."""
    try:
        import boto3
        from botocore.exceptions import BotoCoreError
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError as error:
        raise ConfigError(
            [f"AWS_PROFILE={profile}: needs boto3: pip install 'delta-sink[dynamodb]'"]
        ) from error
    try:
        provider: Callable[[], dict[str, str | None]] = Boto3CredentialProvider(
            boto3.Session(profile_name=profile)
        )
    except (BotoCoreError, ValueError) as error:
        raise ConfigError([f"AWS_PROFILE={profile}: {error}"]) from error
    return provider
