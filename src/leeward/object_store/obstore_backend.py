"""S3 and Azure Blob through obstore.

Owns: the only place where obstore's exceptions become ours, and the settling of creates whose
reply was lost. Must not know: what the objects mean. The only home of obstore.
"""

from __future__ import annotations

import builtins
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlsplit

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import AzureStore, S3Store

from leeward.core.errors import InvalidRequest, NotFound, ObjectExists, Unavailable
from leeward.object_store.names import check_object_name, check_prefix, check_range
from leeward.object_store.store import Buffer, join

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig
    from obstore.store import ObjectStore as VendorStore

_READ_RETRIES: RetryConfig = {"max_retries": 3, "retry_timeout": timedelta(seconds=10)}
_NO_RETRIES: RetryConfig = {"max_retries": 0, "retry_timeout": timedelta(seconds=20)}
_TIMEOUT = "20s"
_OPTIONS = frozenset({"endpoint", "region"})


def open_cloud_store(url: str) -> ObstoreStore:
    """Return the store at an s3:// or az:// URL. Raises: InvalidRequest."""
    parts = urlsplit(url)
    options = dict(parse_qsl(parts.query))
    unknown = sorted(set(options) - _OPTIONS)
    if unknown:
        raise InvalidRequest(
            f"{url!r}: unknown option {unknown[0]!r}",
            field="url",
            hint="endpoint= and region= are known; credentials come from the environment",
        )
    endpoint = options.get("endpoint", "")
    client: ClientConfig = {"timeout": _TIMEOUT, "connect_timeout": "5s"}
    if endpoint.startswith("http://"):
        client["allow_http"] = True
    try:
        reader = _vendor_store(url, endpoint, options.get("region", ""), client, _READ_RETRIES)
        writer = _vendor_store(url, endpoint, options.get("region", ""), client, _NO_RETRIES)
    except (BaseError, ValueError) as error:
        raise InvalidRequest(f"{url!r} cannot be opened: {error}", field="url") from error
    return ObstoreStore(url, reader, writer)


def _vendor_store(
    url: str, endpoint: str, region: str, client: ClientConfig, retries: RetryConfig
) -> VendorStore:
    parts = urlsplit(url)
    path = unquote(parts.path).strip("/")
    config: dict[str, Any] = {"endpoint": endpoint} if endpoint else {}
    if parts.scheme == "s3":
        if endpoint:
            config["virtual_hosted_style_request"] = False
        if region:
            config["region"] = region
        return S3Store(
            parts.netloc, prefix=path or None, client_options=client, retry_config=retries, **config
        )
    container, _, prefix = path.partition("/")
    if not container:
        raise ValueError("an az:// URL names an account and a container")
    return AzureStore(
        container,
        prefix=prefix or None,
        account_name=parts.netloc,
        client_options=client,
        retry_config=retries,
        **config,
    )


class ObstoreStore:
    """An ObjectStore over one of obstore's.

    reader retries inside; writer must not: a create that is repeated below us after a lost reply
    would meet its own object and look like somebody else's.
    """

    def __init__(self, url: str, reader: VendorStore, writer: VendorStore) -> None:
        self._url = url
        self._reader = reader
        self._writer = writer

    @property
    def url(self) -> str:
        return self._url

    def create(self, name: str, data: Buffer | Sequence[Buffer]) -> None:
        content = join(data)
        try:
            with _translated(check_object_name(name), "create"):
                obstore.put(self._writer, name, content, mode="create", use_multipart=False)
        except Unavailable as error:
            self._settle(name, content, error)

    def _settle(self, name: str, content: bytes, lost: Unavailable) -> None:
        """Return if a create without a reply has taken place after all."""
        try:
            found = self.get(name)
        except NotFound:
            raise lost from None
        if found != content:
            raise ObjectExists(f"object {name} exists already") from lost

    def get(self, name: str) -> bytes:
        with _translated(check_object_name(name), "read"):
            return bytes(obstore.get(self._reader, name).bytes())

    def get_range(self, name: str, offset: int, length: int) -> bytes:
        check_range(offset, length)
        if length == 0:
            self.size(name)
            return b""
        try:
            with _translated(check_object_name(name), "read"):
                return bytes(obstore.get_range(self._reader, name, start=offset, length=length))
        except Unavailable:
            # A range that begins at or past the end is an error of no class of its own.
            if offset >= self.size(name):
                return b""
            raise

    def size(self, name: str) -> int:
        with _translated(check_object_name(name), "read"):
            return int(obstore.head(self._reader, name)["size"])

    def list(self, prefix: str) -> builtins.list[str]:
        return sorted(self.sizes(prefix))

    def sizes(self, prefix: str) -> dict[str, int]:
        check_prefix(prefix)
        with _translated(prefix or "everything", "list"):
            pages = obstore.list(self._reader, prefix=prefix.rstrip("/") or None)
            return {entry["path"]: int(entry["size"]) for page in pages for entry in page}

    def delete(self, name: str) -> None:
        try:
            with _translated(check_object_name(name), "delete"):
                obstore.delete(self._reader, name)
        except NotFound:
            return


@contextmanager
def _translated(name: str, action: str) -> Iterator[None]:
    """Turn obstore's exceptions into ours. Anything unknown is Unavailable: it is retried, never
    taken for an absent object."""
    try:
        yield
    except FileNotFoundError as error:
        raise NotFound(f"no object {name}") from error
    except (AlreadyExistsError, PreconditionError) as error:
        raise ObjectExists(f"object {name} exists already") from error
    except (PermissionDeniedError, UnauthenticatedError) as error:
        raise Unavailable(
            f"cannot {action} {name}: the object store refused our credentials",
            hint="check the environment variables AWS_* or AZURE_*",
        ) from error
    except (BaseError, OSError) as error:
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise Unavailable(f"cannot {action} {name}: {first_line[:200]}") from error
