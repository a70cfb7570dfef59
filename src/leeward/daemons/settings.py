"""Settings of every daemon: one leeward.toml, overruled by the environment.

Owns: the keys, their defaults, and saying in one sentence which key is wrong. Must not know: what
the daemons do with them. The only home of pydantic-settings.

    data = "/var/lib/leeward"                   # LEEWARD_DATA; ~/.local/share/leeward
    service_url = "http://127.0.0.1:8470"       # LEEWARD_SERVICE_URL
    region = "east"                             # LEEWARD_REGION    (agent, worker)
    name = "host-1"                             # LEEWARD_NAME      (agent, worker)
    token_file = ""                             # LEEWARD_TOKEN_FILE, one-time enrolment token
    tunnel = "192.0.2.10:4789"                  # LEEWARD_TUNNEL    (agent); "": joins no others
    key_file = ""                               # LEEWARD_KEY_FILE, encryption keys (agent, worker)
    export_cache = "4G"                         # LEEWARD_EXPORT_CACHE, disk for exports (agent)
    [service]
    host = "127.0.0.1"                          # LEEWARD_SERVICE__HOST
    port = 8470                                 # LEEWARD_SERVICE__PORT
    database_url = ""                           # LEEWARD_SERVICE__DATABASE_URL; "": SQLite in data
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from leeward.core.errors import InvalidRequest
from leeward.core.units import parse_size

DEFAULT_FILE = Path("leeward.toml")
_PREFIX = "LEEWARD_"


def _default_data() -> Path:
    base = os.environ.get("XDG_DATA_HOME", "") or "~/.local/share"
    return Path(base, "leeward").expanduser()


class ServiceSettings(BaseModel):
    """Where the service listens and keeps its vault."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str = "127.0.0.1"
    port: int = Field(default=8470, ge=1, le=65535)
    database_url: str = ""


class Settings(BaseSettings):
    """Everything a daemon may be told."""

    model_config = SettingsConfigDict(
        extra="forbid", frozen=True, env_prefix=_PREFIX, env_nested_delimiter="__"
    )

    data: Path = Field(default_factory=_default_data)
    service_url: str = "http://127.0.0.1:8470"
    region: str = ""
    name: str = ""
    token_file: str = ""
    tunnel: str = ""
    key_file: str = ""
    export_cache: str = ""
    service: ServiceSettings = ServiceSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment overrules the file, whose keys come in as arguments."""
        return env_settings, init_settings

    @field_validator("export_cache")
    @classmethod
    def _check_size(cls, text: str) -> str:
        try:
            parse_size(text or "0")
        except InvalidRequest as error:
            raise ValueError(f"{text!r} is not a size; {error.hint}") from error
        return text

    @property
    def service_data(self) -> Path:
        """Return the directory of the service's own state."""
        return self.data.expanduser().absolute() / "service"


def load_settings(file: Path | None = None) -> Settings:
    """Return the settings of `file` (default: $LEEWARD_CONFIG, else ./leeward.toml if it is there),
    overruled by LEEWARD_* of the environment.

    Raises: InvalidRequest with one sentence naming the file or variable and the key.
    """
    path, keys = _read(file)
    try:
        return Settings(**keys)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise InvalidRequest(
            f"{_origin(path, key)}: {key}: {_sentence(first['type'], first['msg'])}", field=key
        ) from error
    except SettingsError as error:
        raise InvalidRequest(f"the environment's {_PREFIX}* variables: {error}") from error


def _read(file: Path | None) -> tuple[Path, dict[str, Any]]:
    named = file or (Path(os.environ["LEEWARD_CONFIG"]) if "LEEWARD_CONFIG" in os.environ else None)
    path = named or DEFAULT_FILE
    try:
        return path, tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        if named is None:
            return path, {}
        raise InvalidRequest(f"{path} does not exist") from error
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{path} is not UTF-8 text") from error
    except tomllib.TOMLDecodeError as error:
        raise InvalidRequest(f"{path} is not valid TOML: {error}") from error


def _origin(path: Path, key: str) -> str:
    variable = _PREFIX + key.replace(".", "__").upper()
    return f"${variable}" if variable in os.environ else str(path)


def _sentence(kind: str, message: str) -> str:
    if kind == "extra_forbidden":
        return "there is no such key"
    plain = message.removeprefix("Value error, ")
    return plain[0].lower() + plain[1:]
