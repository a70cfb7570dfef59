"""Where the service is and with which token: found in the environment or in a data directory.

Owns: the file client.toml. Must not know: what is asked of the service.
"""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

from leeward.core.errors import InvalidRequest, Unavailable

FILE_NAME = "client.toml"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientConfig:
    """The service's address and the token requests are made with."""

    url: str
    token: str = field(repr=False)


def data_directory(chosen: Path | None = None) -> Path:
    """Return the data directory: `chosen`, else LEEWARD_DATA, else ~/.local/share/leeward."""
    if chosen is None:
        named = os.environ.get("LEEWARD_DATA", "")
        base = os.environ.get("XDG_DATA_HOME", "") or "~/.local/share"
        chosen = Path(named) if named else Path(base, "leeward")
    return chosen.expanduser().absolute()


def load_config(directory: Path) -> ClientConfig:
    """Return the configuration: LEEWARD_URL and LEEWARD_TOKEN go before the directory's file.

    Raises: Unavailable when nothing says where the service is; InvalidRequest for a broken file.
    """
    url, token = os.environ.get("LEEWARD_URL", ""), os.environ.get("LEEWARD_TOKEN", "")
    if url and not token:
        raise InvalidRequest(
            "LEEWARD_URL is set, and LEEWARD_TOKEN is not",
            field="LEEWARD_TOKEN",
            hint="it is in service/api-token of the service's data directory",
        )
    if url:
        return ClientConfig(url=url, token=token)
    path = directory / FILE_NAME
    try:
        found = tomllib.loads(path.read_text())
        return ClientConfig(url=str(found["url"]), token=token or str(found["token"]))
    except FileNotFoundError as error:
        raise Unavailable(
            f"no Leeward is known in {directory}",
            hint="start one with `leeward up`, or name one with --data-dir or LEEWARD_URL",
        ) from error
    except OSError as error:
        raise Unavailable(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{path} is broken: {error}") from error
    except KeyError as error:
        raise InvalidRequest(f"{path} is broken: it does not say {error.args[0]}") from error


def save_config(directory: Path, config: ClientConfig) -> None:
    """The directory's file holds `config`, readable by its owner only."""
    path = directory / FILE_NAME
    text = f'url = "{config.url}"\ntoken = "{config.token}"\n'
    temporary = path.with_name(f".{FILE_NAME}.new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    temporary.replace(path)
