"""Real object store servers on 127.0.0.1: SeaweedFS for S3, Azurite for Azure Blob.

Both are installed by scripts/setup; a test that needs one and does not find it fails. One of each
runs per test process, started at the first question; every caller gets a prefix of its own.
"""

from __future__ import annotations

import atexit
import base64
import functools
import hashlib
import hmac
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from email.utils import formatdate
from pathlib import Path

import httpx
from demo.ports import free_port

_START_SECONDS = 90
_HERE = Path(__file__).parent
_ACCOUNT = "devstoreaccount1"
# Azurite's only account and its key are the same everywhere, and secret nowhere.
_ACCOUNT_KEY = (
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)


def s3_url() -> str:
    """Return the URL of an empty S3 store; credentials are in the environment."""
    return _s3_url(_seaweed())


def _s3_url(endpoint: str) -> str:
    return f"s3://leeward/{secrets.token_hex(8)}?endpoint={endpoint}&region=here"


def azure_url() -> str:
    """Return the URL of an empty Azure Blob store; credentials are in the environment."""
    return f"az://{_ACCOUNT}/leeward/{secrets.token_hex(8)}?endpoint={_azurite()}/{_ACCOUNT}"


@functools.cache
def _seaweed() -> str:
    """Return the endpoint of a SeaweedFS that runs until this process ends."""
    directory = _directory("seaweed")
    key, secret = secrets.token_hex(8), secrets.token_hex(16)
    identity = {"name": "tests", "credentials": [{"accessKey": key, "secretKey": secret}]}
    config = directory / "s3.json"
    config.write_text(json.dumps({"identities": [{**identity, "actions": ["Admin"]}]}))
    kinds = ("master.port", "volume.port", "filer.port", "s3.port")
    names = [*kinds, *(f"{kind}.grpc" for kind in kinds)]
    ports = {name: free_port() for name in names}
    weed = Path(sys.executable).parent / "weed"
    command = [str(weed), "server", f"-dir={directory}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
    command += ["-s3", f"-s3.config={config}", "-s3.autoCreateBucket", "-volume.max=50"]
    command += ["-master.volumeSizeLimitMB=64", "-master.telemetry=false", "-volume.minFreeSpace=1"]
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0"]
    command += [f"-{name}={port}" for name, port in ports.items()]
    endpoint = f"http://127.0.0.1:{ports['s3.port']}"
    _start(command, directory, endpoint)
    os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"] = key, secret
    _wait_writable(endpoint, directory)
    return endpoint


def _wait_writable(endpoint: str, directory: Path) -> None:
    """Return once an object can be stored: S3 answers before its volumes are there."""
    from leeward.core.errors import Unavailable
    from leeward.object_store.open import open_store

    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            open_store(_s3_url(endpoint)).create("first", b"x")
            return
        except Unavailable:
            assert time.monotonic() < deadline, (directory / "log").read_text()[-3000:]
            time.sleep(0.2)


@functools.cache
def _azurite() -> str:
    """Return the endpoint of an Azurite that runs until this process ends."""
    directory = _directory("azurite")
    port = free_port()
    endpoint = f"http://127.0.0.1:{port}"
    command = ["node", str(_azurite_installed()), "--skipApiVersionCheck", "--silent"]
    command += ["--blobHost", "127.0.0.1", "--blobPort", str(port), "--location", str(directory)]
    _start([*command, "--disableTelemetry"], directory, endpoint)
    os.environ["AZURE_STORAGE_ACCOUNT_KEY"] = _ACCOUNT_KEY
    _create_container(endpoint, "leeward")
    return endpoint


def _azurite_installed() -> Path:
    """Return Azurite's program, where scripts/setup puts it."""
    chosen = os.environ.get("LEEWARD_CACHE")
    cache = Path(chosen) if chosen else Path.home() / ".cache" / "leeward"
    lock = (_HERE / "azurite" / "package-lock.json").read_bytes()
    root = cache / f"azurite-{hashlib.sha256(lock).hexdigest()[:12]}"
    program = root / "node_modules/azurite/dist/src/blob/main.js"
    assert program.exists(), f"{program} is missing: run scripts/setup"
    return program


def _create_container(endpoint: str, name: str) -> None:
    """The container exists: one signed request, which obstore has no verb for."""
    headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2021-08-06"}
    signed = "".join(f"{key}:{value}\n" for key, value in sorted(headers.items()))
    text = f"PUT\n\n\n\n\n\n\n\n\n\n\n\n{signed}/{_ACCOUNT}/{_ACCOUNT}/{name}\nrestype:container"
    digest = hmac.digest(base64.b64decode(_ACCOUNT_KEY), text.encode(), "sha256")
    headers["Authorization"] = f"SharedKey {_ACCOUNT}:{base64.b64encode(digest).decode()}"
    url = f"{endpoint}/{_ACCOUNT}/{name}?restype=container"
    reply = httpx.put(url, headers=headers, trust_env=False)
    assert reply.status_code in (201, 409), reply.text


def _directory(name: str) -> Path:
    directory = Path(tempfile.mkdtemp(prefix=f"leeward-{name}-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return directory


def _start(command: list[str], directory: Path, endpoint: str) -> None:
    """The server answers HTTP; it ends with this process."""
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=directory)
    atexit.register(_end, process)
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            httpx.get(endpoint, trust_env=False, timeout=5)
            return
        except httpx.HTTPError:
            assert process.poll() is None, (directory / "log").read_text()[-3000:]
            assert time.monotonic() < deadline, f"{command[0]} does not answer"
            time.sleep(0.1)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
