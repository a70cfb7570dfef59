"""The REST client: paths, bodies, pages, problems, retries."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from leeward.client.client import Client
from leeward.client.config import ClientConfig, data_directory, load_config, save_config
from leeward.client.rest import Rest
from leeward.core.errors import Conflict, InvalidRequest, NotAllowed, NotFound, Unavailable
from leeward.model.recovery import JobState
from leeward.model.resources import Subnet, VirtualNetwork

CONFIG = ClientConfig(url="http://service:1", token="secret")
ITEM = {
    "id": "item-1",
    "name": "web-1",
    "vault": "v",
    "policy": "default",
    "state": "protected",
    "epoch": 1,
    "source_region": "east",
    "source_vm": "web-1",
    "target_region": "west",
    "target_resource_group": "web-rg-asr",
    "health": {"rpo_seconds": 1.5, "replication": None, "processing": None, "hydration": None},
}


def client_of(answer: Callable[[httpx.Request], httpx.Response]) -> Client:
    rest = Rest(CONFIG, transport=httpx.MockTransport(answer), sleep=lambda seconds: None)
    return Client(rest)


def replies(**by_path: Any) -> Callable[[httpx.Request], httpx.Response]:
    """Answer GET of /api/v1/<path> with JSON; anything else is 404."""

    def answer(request: httpx.Request) -> httpx.Response:
        path = request.url.path.removeprefix("/api/v1/")
        if path not in by_path:
            return httpx.Response(404, json={"code": "not_found", "detail": f"no {path}"})
        return httpx.Response(200, json=by_path[path])

    return answer


def test_resource_is_put_without_what_the_path_says() -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(
            202,
            json={
                "id": "job-1",
                "verb": "network.create",
                "target": "network/east/corp",
                "state": "running",
                "created_ns": 1,
            },
        )

    network = VirtualNetwork(
        region="east",
        name="corp",
        resource_group="rg",
        address_space=("10.0.0.0/16",),
        subnets=(Subnet(name="front", prefix="10.0.1.0/24"),),
    )
    with client_of(answer) as client:
        job = client.put(network)
    assert job is not None
    assert (job.id, job.state) == ("job-1", JobState.RUNNING)
    assert seen[0].url.path == "/api/v1/regions/east/networks/corp"
    assert json.loads(seen[0].content) == {
        "resource_group": "rg",
        "address_space": ["10.0.0.0/16"],
        "subnets": [{"name": "front", "prefix": "10.0.1.0/24", "bridge": ""}],
        "routing": "isolated",
        "outbound": "none",
    }
    assert seen[0].headers["Authorization"] == "Bearer secret"
    assert seen[0].headers["Idempotency-Key"]


def test_lost_connection_is_tried_again_with_the_same_key() -> None:
    keys: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        keys.append(request.headers["Idempotency-Key"])
        if len(keys) < 3:
            raise httpx.ReadError("reset")
        return httpx.Response(200, json={})

    with client_of(answer) as client:
        client.create_vault("v")
    assert len(keys) == 3
    assert len(set(keys)) == 1


def test_service_that_does_not_answer_is_unavailable() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("[Errno 111] Connection refused")

    with client_of(answer) as client, pytest.raises(Unavailable, match="connection refused"):
        client.regions()


def test_problem_becomes_the_error_it_was() -> None:
    problem = {"code": "conflict", "detail": "in use", "field": "name", "hint": "delete VMs first"}

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(409, json=problem)

    with client_of(answer) as client, pytest.raises(Conflict) as caught:
        client.delete_vault("v")
    assert (caught.value.message, caught.value.field, caught.value.hint) == (
        "in use",
        "name",
        "delete VMs first",
    )


def test_refused_token_is_said_so() -> None:
    with (
        client_of(lambda request: httpx.Response(401, text="go away")) as client,
        pytest.raises(NotAllowed),
    ):
        client.regions()


def test_item_is_found_in_whichever_vault_holds_it() -> None:
    answers = replies(
        **{
            "vaults": {"items": [{"name": "u"}, {"name": "v"}]},
            "vaults/u/replicated-items": {"items": []},
            "vaults/v/replicated-items": {"items": [ITEM]},
            "vaults/v/replicated-items/web-1": ITEM,
        }
    )
    with client_of(answers) as client:
        found = client.find_item("web-1")
        assert (found.vault, found.health.rpo_seconds) == ("v", 1.5)
        assert client.find_item("item-1").name == "web-1"
        with pytest.raises(NotFound, match="no replicated item nobody"):
            client.find_item("nobody")
        with pytest.raises(NotFound, match="did you mean web-1"):
            client.find_item("wbe-1")
        with pytest.raises(NotFound, match="named without a region: web-1"):
            client.find_item("east/web-1")


def test_item_in_two_vaults_must_be_told_apart() -> None:
    answers = replies(
        **{
            "vaults": {"items": [{"name": "u"}, {"name": "v"}]},
            "vaults/u/replicated-items": {"items": [{**ITEM, "vault": "u"}]},
            "vaults/v/replicated-items": {"items": [ITEM]},
        }
    )
    with client_of(answers) as client, pytest.raises(Conflict, match="several vaults: u, v"):
        client.find_item("web-1")


def test_pages_are_followed_to_the_end() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        cursor = request.url.params.get("cursor", "")
        if not cursor:
            return httpx.Response(200, json={"items": [{"name": "a"}], "next": "2"})
        return httpx.Response(200, json={"items": [{"name": "b"}], "next": None})

    with client_of(answer) as client:
        assert [vault.name for vault in client.vaults()] == ["a", "b"]


def test_address_that_is_none_is_refused_in_a_sentence() -> None:
    for url in ("http://host:port", "somewhere", "ftp://host"):
        with pytest.raises(InvalidRequest, match="is not the address of a service"):
            Rest(ClientConfig(url=url, token="t"))


def test_configuration_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LEEWARD_URL", raising=False)
    monkeypatch.delenv("LEEWARD_TOKEN", raising=False)
    save_config(tmp_path, CONFIG)
    assert load_config(tmp_path) == CONFIG
    assert (tmp_path / "client.toml").stat().st_mode & 0o777 == 0o600
    monkeypatch.setenv("LEEWARD_URL", "http://elsewhere")
    monkeypatch.setenv("LEEWARD_TOKEN", "t")
    assert load_config(tmp_path) == ClientConfig(url="http://elsewhere", token="t")


@pytest.mark.parametrize("text", ["url = ", 'url = "http://x"\n', "\xff"])
def test_broken_configuration_is_said_in_a_sentence(
    tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LEEWARD_URL", raising=False)
    monkeypatch.delenv("LEEWARD_TOKEN", raising=False)
    (tmp_path / "client.toml").write_text(text, encoding="latin-1")
    with pytest.raises(InvalidRequest, match=r"client\.toml is broken"):
        load_config(tmp_path)


def test_missing_configuration_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LEEWARD_URL", raising=False)
    with pytest.raises(Unavailable) as caught:
        load_config(tmp_path)
    assert "leeward up" in str(caught.value)


def test_data_directory_is_the_chosen_or_the_environments_or_the_users(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LEEWARD_DATA", "/data")
    assert data_directory() == Path("/data")
    assert data_directory(Path("/other")) == Path("/other")
    monkeypatch.setenv("LEEWARD_DATA", "")
    monkeypatch.setenv("XDG_DATA_HOME", "")
    assert data_directory() == Path.home() / ".local/share/leeward"
