"""From a URL to a store.

Owns: which scheme is which backend. Must not know: anything of the backends beyond their names.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from leeward.core.errors import InvalidRequest
from leeward.object_store.file import FileStore
from leeward.object_store.memory import shared_memory_store
from leeward.object_store.store import ObjectStore

_HINT = "file:///directory, memory://name, s3://bucket/prefix or az://account/container/prefix"


def open_store(url: str) -> ObjectStore:
    """Return the store at `url`; nothing is contacted or created yet.

    file:///absolute/path   a directory made by `create_file_store`
    memory://name           this process's memory
    s3://bucket[/prefix]    S3 and what speaks it; ?endpoint=, ?region=; credentials from AWS_*
    az://account/container[/prefix]   Azure Blob; ?endpoint=; credentials from AZURE_*
    Raises: InvalidRequest.
    """
    parts = urlsplit(url)
    if parts.scheme == "file" and parts.netloc in ("", "localhost") and len(parts.path) > 1:
        return FileStore(Path(unquote(parts.path)))
    if parts.scheme == "memory" and parts.netloc:
        return shared_memory_store(parts.netloc)
    if parts.scheme in ("s3", "az") and parts.netloc:
        from leeward.object_store.obstore_backend import open_cloud_store

        return open_cloud_store(url)
    raise InvalidRequest(f"{url!r} is not an object store's URL", field="url", hint=_HINT)
