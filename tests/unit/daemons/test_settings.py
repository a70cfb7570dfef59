"""leeward.toml: the environment overrules it, and a broken one is told in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from leeward.core.errors import InvalidRequest
from leeward.daemons.settings import load_settings


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("CONFIG", "DATA", "REGION", "NAME", "SERVICE__PORT", "SERVICE_URL", "SERVICE"):
        monkeypatch.delenv(f"LEEWARD_{name}", raising=False)


def test_without_a_file_there_are_defaults() -> None:
    settings = load_settings()
    assert (settings.service.host, settings.service.port) == ("127.0.0.1", 8470)


def test_the_environment_overrules_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Path("leeward.toml").write_text('region = "east"\n[service]\nport = 1234\nhost = "::1"\n')
    monkeypatch.setenv("LEEWARD_SERVICE__PORT", "99")
    monkeypatch.setenv("LEEWARD_DATA", str(tmp_path))
    settings = load_settings()
    assert settings.region == "east"
    assert (settings.service.host, settings.service.port) == ("::1", 99)
    assert settings.service_data == tmp_path / "service"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("region = \n", "leeward.toml is not valid TOML: "),
        ("[service]\nport = 'x'\n", "leeward.toml: service.port: "),
        ("[service]\nport = 70000\n", "leeward.toml: service.port: "),
        ("regoin = 'east'\n", "leeward.toml: regoin: there is no such key"),
        ("[service]\nprot = 1\n", "leeward.toml: service.prot: there is no such key"),
        ("service = 1\n", "leeward.toml: service: "),
        ("export_cache = 'much'\n", "leeward.toml: export_cache: "),
    ],
)
def test_a_broken_file_is_told_in_one_sentence(text: str, sentence: str) -> None:
    Path("leeward.toml").write_text(text)
    with pytest.raises(InvalidRequest) as refused:
        load_settings()
    assert refused.value.message.startswith(sentence)
    assert "\n" not in refused.value.message


def test_a_broken_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEEWARD_SERVICE__PORT", "x")
    with pytest.raises(InvalidRequest, match=r"^\$LEEWARD_SERVICE__PORT: service\.port: "):
        load_settings()


def test_a_named_file_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="does not exist"):
        load_settings(tmp_path / "other.toml")


def test_what_agents_are_told_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("leeward.toml").write_text('key_file = "/k"\nexport_cache = "8G"\n')
    monkeypatch.delenv("LEEWARD_KEY_FILE", raising=False)
    monkeypatch.delenv("LEEWARD_EXPORT_CACHE", raising=False)
    settings = load_settings()
    assert (settings.key_file, settings.export_cache) == ("/k", "8G")
