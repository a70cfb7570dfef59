"""A replica left behind, found and deleted by command line, service and worker as processes."""

from __future__ import annotations

from typing import Any

import pytest
from tests.integration.leeward_process import installation
from tests.unit.processor.test_found_items import fill_store

from leeward.object_store.open import open_store
from leeward.replica.pins import Pin

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]
LIST = ("storage", "replicas", "list")
DELETE = ("storage", "replicas", "delete", "item-1", "--yes")


def test_a_leftover_is_listed_refused_while_it_is_read_and_deleted_with_what_a_cache_has() -> None:
    with installation() as leeward:
        up = leeward.run("up", "--detach", "--regions", "a,b", "--port", str(leeward.port))
        assert up.code == 0, up.err
        urls = []
        for region, name in (("a", "cache"), ("b", "attic")):
            group = leeward.run("resource-group", "create", "rg", "--region", region)
            assert group.code == 0, group.err
            where = ("--region", region, "--resource-group", "rg")
            made = leeward.run("storage-account", "create", name, *where)
            assert made.code == 0, made.err
            urls.append(leeward.ask("storage-account", "show", f"{region}/{name}")["url"])
        assert leeward.ask(*LIST) == {"replicas": [], "problems": []}
        cache, attic = (open_store(url) for url in urls)
        fill_store(attic, attic.url, 1, "a", "b")
        cache.create("items/item-1/applied/0001", b"left")
        cache.create("items/item-2/applied/0001", b"other")

        found: list[dict[str, Any]] = leeward.ask(*LIST)["replicas"]
        told = {(each["account"], each["stored"]["item_id"]): each for each in found}
        assert set(told) == {("cache", "item-1"), ("cache", "item-2"), ("attic", "item-1")}
        assert not any(each["used_by"] for each in found)
        replica = told["attic", "item-1"]["stored"]
        assert (replica["name"], replica["newest_point"]) == ("web-1", "rp-0001-00000001")
        assert replica["bytes"] == sum(attic.sizes("items/").values())
        assert len(leeward.ask(*LIST, "b/attic")["replicas"]) == 1

        pin = Pin(attic, "item-1", 1, "rp-0001-00000001")
        before = attic.list("items/")
        refused = leeward.run(*DELETE)
        assert refused.code == 4, refused.err
        assert "1 readers have pinned item-1" in " ".join(refused.err.split())
        assert attic.list("items/") == before
        pin.release()

        done = leeward.run(*DELETE)
        assert done.code == 0, done.err
        assert attic.list("items/") == []
        assert cache.list("items/") == ["items/item-2/applied/0001"]
        assert leeward.run(*DELETE).code == 3
        assert leeward.run("down").code == 0
