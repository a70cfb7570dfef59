"""The operations page: every command of docs/operations.md, run as written against two regions.

The page is for whoever is woken; this is what they do, in the order that brings every state about:
tests and drills, a group, a planned move, a worker and a host lost, a plan, a region that burns,
the vault lost. An operator's own names are put where the page has its own (VALUES).

Owns: that order, and what the page says that its commands show. Must not know: how any is done.
"""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

from demo.fire import burn, kill_all, processes_of
from demo.poller import ask
from demo.ports import free_port

from leeward.client.config import load_config
from leeward.daemons.places import Places
from leeward.fabric.processes import read_pid_file
from leeward.model.recovery import ItemState
from leeward.replica.host_keys import KEY_FILE
from scenario.common import Findings, Result
from scenario.operations_hands import (
    LOST_SECONDS,
    approve,
    kill_host,
    overlays,
    shared_points,
    wait_hydrated,
    wait_protected,
    wait_trimmed,
)
from scenario.operations_machines import separate_machines
from scenario.operations_not_run import NOT_RUN
from scenario.page import ROOT, Reader, commands_of, files_of, filled
from scenario.plan import listening, scripts
from scenario.rig import GUEST_PORT, Part, Rig, create_machine, create_place
from scenario.stage import play

PAGE = ROOT / "docs" / "operations.md"
VALUES = {
    "ITEM": "web-1",
    "VM": "web-1",
    "POLICY": "default",
    "VAULT": "default",
    "PORT": str(GUEST_PORT),
    "tcp:22": f"tcp:{GUEST_PORT}",  # the demo's guest listens there alone
    "5432": str(GUEST_PORT),
    "queue-1": "web-2",
}
ITEMS = ("web-1", "db-1", "web-2")
MOVED = r"next: `leeward commit"
SPARE = "spare"
"""The directory of a worker on a machine of its own."""
NODES = 6
"""Two agents and a worker in each of two regions."""


def run() -> Result:
    """Return what the page's commands showed."""
    return play(_story, up=_up)


def _up(rig: Rig) -> None:
    rig.data.mkdir()
    os.environ[KEY_FILE] = str(rig.directory / "keys")


def _story(rig: Rig, findings: Findings) -> None:
    values = {**VALUES, "/etc/leeward/keys": str(rig.directory / "keys")}
    values["/run/data.sock"] = str(rig.directory / "data.sock")
    values["file:///srv/west"] = f"file://{rig.data}/regions/west"
    reader = Reader(PAGE.read_text(), rig.directory, values, findings, _own(rig))
    try:
        _parts(rig, reader)
    finally:
        reader.end_all()
        os.environ.pop(KEY_FILE, None)
    if not findings.violations:
        wanted = [each for each in commands_of(reader.page) if each not in NOT_RUN]
        left = [each for each in wanted if each not in reader.ran]
        findings.check("every command of the page has run", not left, "; ".join(left))


def _parts(rig: Rig, reader: Reader) -> None:
    for part in (
        separate,
        begin,
        well,
        tested,
        drilled,
        consistent,
        grouped,
        changed,
        stored,
        moved,
        worker_lost,
        planned,
        host_lost,
        burned,
        vault_lost,
    ):
        doc = (part.__doc__ or "").split(".")[0]
        with reader.findings.part(doc[0].lower() + doc[1:]):
            part(rig, reader)
            continue
        return  # what comes after needs what it should have made


def separate(rig: Rig, reader: Reader) -> None:
    """On separate machines: service, agent and worker by hand."""
    separate_machines(reader)


def begin(rig: Rig, reader: Reader) -> None:
    """Everything on one machine: two hosts in each region, three VMs protected."""
    key_id = reader.run("leeward vault key new /etc/leeward/keys", r"^\w+$").strip()
    mode = (rig.directory / "keys").stat().st_mode & 0o777
    reader.findings.check("the key file is mode 0600", mode == 0o600, f"{mode:o}")
    rig.up(free_port(), hosts=2)
    rig.run("down")
    reader.run("leeward status", r"the service at .* does not answer", code=5)
    reader.start("leeward up")
    rig.wait("everything up again", lambda: rig.client.jobs(limit=1) == ())
    reader.run("leeward vault key use default ID", names={"ID": key_id})
    rig.wait(
        "every node has the key",
        lambda: [key for key in rig.client.vault_keys("default") if len(key.nodes) == NODES],
    )
    reader.run("leeward vault key list VAULT", key_id, "agent east-1", "worker west-worker")
    reader.run("leeward policy create secret --encryption aes-256-gcm")
    create_place(rig)
    create_machine(rig, "web-1", "front=corp/front", "--display", "vga")
    create_machine(rig, "db-1", "front=corp/front")
    create_machine(rig, "web-2", "front=corp/front")
    rig.run("protect", *(f"east/{name}" for name in ITEMS), "--to", "west")
    for name in ITEMS:
        wait_protected(rig, name)


def well(rig: Rig, reader: Reader) -> None:
    """Is everything well?"""
    reader.run(
        "leeward status",
        r"west +worker +west-worker +online",
        r"web-1 +east → west +protected +streaming +[\d.]+ s",
    )
    reader.run("leeward doctor", r"QEMU .* is installed", r"tcg|kvm", r"namespaces", r"are free")
    reader.run("leeward item show ITEM", r"^state +protected", r"^replication +streaming")
    reader.run("leeward job list", r"item\.protect +item/web-1 +succeeded")
    job = rig.job("drill", "run", "web-1")
    reader.run("leeward job show JOB", r"item\.drill", names={"JOB": job})
    reader.run("leeward job cancel JOB", names={"JOB": job})
    reader.findings.check("it is cancelled", rig.wait_job(job).state.value == "cancelled")
    reader.run("leeward policy create gold --bandwidth 08:00-18:00=5M --bandwidth 50M")
    said = rig.run("policy", "list")
    reader.findings.check("gold is there", "gold" in said, said)
    reader.run("leeward policy create POLICY …", names={"…": "--rpo-alert 45"})


def tested(rig: Rig, reader: Reader) -> None:
    """Would it come up? Test failover."""
    said = reader.run(
        "leeward test-failover web-1 --forward 8080", rf"127\.0\.0\.1:\d+ → {GUEST_PORT}"
    )
    address = said.split("reachable on its host at ")[1].split(" ")[0]
    rig.wait("the copy's answer", lambda: ask(address, "/counter"))
    reader.run("leeward item show web-1", r"^test VM +from rp-\S+, on host west-\d")
    reader.run("leeward test-failover-cleanup web-1", r"nothing of the test VM")
    reader.run("leeward resource-group create labs --region west")
    reader.run(
        "leeward network create lab --region west -g labs --address-space 10.10.0.0/16 "
        "--subnet front=10.10.1.0/24"
    )
    reader.run("leeward test-failover web-1 --network lab", r"10\.10\.1\.\d+")
    reader.run("leeward test-failover-cleanup ITEM")
    reader.run("leeward item update web-1 --test-network front=lab")
    reader.run("leeward item show web-1", r"^test networks +front → lab")
    reader.run("leeward item update web-1 --test-network front=isolated")
    reader.run("leeward test-failover ITEM --forward PORT", names={"ITEM": "db-1"})
    reader.run("leeward test-failover-cleanup ITEM", names={"ITEM": "db-1"})


def drilled(rig: Rig, reader: Reader) -> None:
    """Does it come up every day? Drills."""
    reader.run(
        "leeward drill create web-1 --every 1d --probe tcp:22 --probe http:8080/check,text=ok"
    )
    reader.run("leeward drill run web-1", r"web-1 is proven", seconds=400)
    reader.run("leeward drill list", r"web-1 .*proven .*ago", r"db-1 .*unproven")
    reader.run("leeward drill show web-1", r"boot", rf"tcp:{GUEST_PORT}", r"verified")
    reader.run("leeward drill show ITEM", r"leeward: ready")  # the console's last lines
    reader.run("leeward drill screenshot web-1 screen.png")
    picture = (rig.directory / "screen.png").read_bytes()
    reader.findings.check("it is a picture", picture.startswith(b"\x89PNG"))


def consistent(rig: Rig, reader: Reader) -> None:
    """Application-consistent recovery points."""
    reader.run("leeward policy create default --app-consistent-every 1h")
    reader.run("leeward recovery-point create web-1", r"application-consistent; .* \d+ ms")
    reader.run("leeward recovery-point list web-1 --limit 5", r"application")
    reader.run("leeward item show ITEM", r"application-consistent +rp-.* frozen for \d+ ms")
    reader.run("leeward event list", r"item_protected|app_consistent|job_succeeded")
    reader.run("leeward event list --target item/web-1", r"app_consistent +recovery point rp-")


def grouped(rig: Rig, reader: Reader) -> None:
    """One moment of several VMs: consistency groups."""
    reader.run("leeward consistency-group create shop --item db-1 --item web-1")
    reader.run("leeward policy create POLICY --shared-interval 30")
    reader.run("leeward consistency-group show shop", r"items +db-1, web-1", r"every +30 s")
    reader.run(
        "leeward consistency-group update shop --add queue-1 --remove web-1",
    )
    rig.wait("two shared points", lambda: len(shared_points(rig)) > 1, LOST_SECONDS)
    reader.run("leeward consistency-group points shop", r"^sp-\S+ +.* 2$")
    reader.run("leeward consistency-group test-failover shop", r"isolated", seconds=300)
    reader.run("leeward consistency-group test-failover-cleanup shop", r"nothing of the test")
    reader.run("leeward consistency-group failover shop", r"✓ db-1", r"✓ web-2", seconds=300)
    reader.run(
        "leeward consistency-group change-recovery-point shop sp-0123456789ab",
        names={"sp-0123456789ab": shared_points(rig)[-1]},
        seconds=300,
    )
    for name in ("db-1", "web-2"):
        rig.wait_guest("west", name=name)
        reader.run("leeward commit ITEM", r"is committed", names={"ITEM": name})
        wait_hydrated(rig, name)
        reader.run("leeward reprotect ITEM", r"--planned", names={"ITEM": name}, seconds=300)
    reader.run("leeward consistency-group delete shop")


def changed(rig: Rig, reader: Reader) -> None:
    """Changing what is protected."""
    reader.run("leeward item update ITEM --memory 512M")
    reader.run("leeward vm disk add east/web-1 logs=webdata,size=8G", r"has a disk logs")
    reader.run("leeward vm disk grow east/web-1 logs 16G", r"16\.0 GiB")
    reader.run("leeward vm disk remove east/web-1 logs", r"is gone")
    reader.run("leeward vm trim east/web-1", r"trimmed")
    reader.run("leeward policy create default --trim-every 7d")
    for name in ITEMS:
        wait_trimmed(rig, name)
        wait_protected(rig, name)


def stored(rig: Rig, reader: Reader) -> None:
    """What is stored: space, damage, and points without a service."""
    reader.run("leeward storage usage websystemasr", r"web-1 +[\d.]+ \wiB", r"FREEABLE.*GARBAGE")
    reader.run("leeward storage compact websystemasr", r"REWRITTEN")
    reader.run("leeward storage scrub ITEM", r"DAMAGED", r"web-1 +\d+ .* 0 +0")
    item = rig.item().id
    store = rig.store_urls()[0]
    reader.environment = {**_own(rig), "LEEWARD_DATA": str(rig.directory / "nothing")}
    listed = reader.run(
        "leeward recovery-point list ITEM --store file:///srv/west/storage/websystemasr/objects",
        r"^rp-",
        names={"ITEM": item},
    )
    point = next(line.split()[0] for line in listed.splitlines() if line.startswith("rp-"))
    reader.run(
        "leeward export ITEM latest --disk system --raw system.raw "
        "--store file:///srv/west/storage/websystemasr/objects "
        "--store file:///srv/west/storage/webdataasr/objects",
        r"system\.raw: system at rp-",
        names={"ITEM": item},
    )
    size = (rig.directory / "system.raw").stat().st_size
    reader.findings.check("the image has the disk's size", size == 128 << 20, str(size))
    stores = [url for url in rig.store_urls() if url != store] or [store]
    export = reader.start(
        "leeward export ITEM POINT --disk data --nbd /run/data.sock --store …",
        names={"ITEM": item, "POINT": point, "…": f"{store} --store {stores[0]}"},
    )
    socket = rig.directory / "data.sock"
    rig.wait("the export", socket.exists)
    said = reader.aside(f"qemu-img info 'nbd+unix:///data?socket={socket}'").stdout
    reader.findings.check("it is served over NBD", "64 MiB" in said, said)
    reader.end(export)
    reader.environment = _own(rig)


def moved(rig: Rig, reader: Reader) -> None:
    """Moving a VM on purpose, another point, and back to being protected."""
    rig.run("item", "update", "web-1", "--memory", "192M")
    reader.run("leeward failover ITEM --planned", r"web-1 runs in west", MOVED, seconds=300)
    reader.run("leeward vm show west/VM", r"^state +running")
    listed = reader.run("leeward recovery-point list ITEM", r"^rp-")
    points = [line.split()[0] for line in listed.splitlines() if line.startswith("rp-")]
    reader.run(
        "leeward change-recovery-point ITEM ID", rf"\({points[5]}\)", MOVED, names={"ID": points[5]}
    )
    reader.run(
        "leeward change-recovery-point ITEM POINT", rf"\({points[0]}\)", names={"POINT": points[0]}
    )
    rig.wait_guest("west")
    reader.run("leeward commit ITEM")
    reader.run("leeward undo-commit ITEM", r"not committed any more")
    reader.run("leeward commit ITEM")
    wait_hydrated(rig, "web-1")
    reader.run("leeward reprotect ITEM", r"protected in east", seconds=300)
    wait_protected(rig, "web-1")


def worker_lost(rig: Rig, reader: Reader) -> None:
    """A worker that is gone for good, and another one of its region."""
    gone = {"REGION": "east", "NODE": "east-worker", "NAME": "east-spare"}
    token = rig.directory / "token"
    reader.run("leeward region token REGION > FILE", names={"REGION": "east", "FILE": str(token)})
    supervisor = read_pid_file(Places(rig.data).up / "up.pid")
    assert supervisor is not None
    os.kill(supervisor.pid, signal.SIGKILL)  # who would start it again
    url, here = load_config(rig.data).url, reader.environment
    reader.environment = {**here, "LEEWARD_DATA": str(rig.directory / SPARE)}
    reader.start(
        "leeward worker --region REGION --name NAME --service URL --token-file FILE",
        names={**gone, "URL": url, "FILE": str(token)},
    )
    reader.environment = here
    rig.wait("the spare worker", lambda: "east-spare" in rig.run("status"))
    rig.kill(Part.WORKER, "east")
    rig.wait(
        "the items with another worker",
        lambda: rig.run("event", "list").count("east-spare") >= len(ITEMS),
        seconds=LOST_SECONDS,
    )
    reader.run("leeward event list", r"item/web-1 .*", r"east-spare")
    reader.run("leeward region forget-node REGION NODE", names=gone)
    for name in ITEMS:
        wait_protected(rig, name)


def planned(rig: Rig, reader: Reader) -> None:
    """Many VMs in order: a recovery plan, tested, stopped, resumed."""
    with listening() as (url, calls):
        own = {**reader.values, "https://hooks.example/leeward": url}
        (rig.directory / "site.toml").write_text(filled(files_of(reader.page)[0], own))
        script = scripts(rig, "east") / "switch-dns"
        script.write_text("#!/bin/sh\necho the registrar does not answer; exit 1\n")
        script.chmod(0o700)
        reader.run("leeward recovery-plan create site --file site.toml")
        reader.run("leeward recovery-plan dry-run site", r"fail over to east", r"db-1", r"dns")
        running = reader.start("leeward recovery-plan run site")
        approve(rig, reader)
        code = running.wait(LOST_SECONDS * 2)
        reader.findings.check("it stops where the script fails", code == 1, str(code))
        reader.run("leeward recovery-plan report site", r"the registrar does not", r"resume site")
        script.write_text("#!/bin/sh\ncat > told\ngrep -q is_test told\n")
        reader.run("leeward recovery-plan resume site", r"is through", seconds=300)
        reader.findings.check("the call came", len(calls) == 1, f"{len(calls)}")
        for name in ITEMS:
            rig.wait_guest("east", name=name)
            reader.run("leeward commit ITEM", names={"ITEM": name})
            wait_hydrated(rig, name)
        reader.run("leeward reprotect ITEM", seconds=300)
        reader.run("leeward reprotect ITEM", names={"ITEM": "db-1"}, seconds=300)
        left = rig.item("web-2").id
        reader.run("leeward unprotect ITEM", r"no longer protected", names={"ITEM": "web-2"})
        reader.run("leeward storage replicas list", rf"{left} .*left over")
        reader.run(
            "leeward storage replicas delete item-94f584dd5277",
            names={"item-94f584dd5277": f"{left} --yes"},
        )
        rig.run("recovery-plan", "delete", "site")
        rig.run("recovery-plan", "create", "site", "--group", "db=db-1", "--group", "web=web-1")
        for name in ("db-1", "web-1"):
            wait_protected(rig, name)
        reader.run("leeward recovery-plan test site", r"test-cleanup site", seconds=300)
        reader.run("leeward recovery-plan report site", r"critical path")
        reader.run("leeward recovery-plan test-cleanup site", r"nothing of the test")
        reader.run(
            "leeward drill create ITEM --probe …",
            names={"ITEM": "db-1", "…": f"tcp:{GUEST_PORT}"},
        )
        reader.run("leeward recovery-plan drill create site --every 7d", r"every 7 d")
        reader.run("leeward recovery-plan drill run site", r"plan site is proven", seconds=500)
        reader.run("leeward recovery-plan drill list", r"site .*proven .*ago")
        reader.run("leeward recovery-plan drill show site", r"passed")
        reader.run("leeward event list --target recovery-plan/default/site", r"drill_passed")


def host_lost(rig: Rig, reader: Reader) -> None:
    """A host that is gone for good, with a VM that had failed over to it."""
    reader.run("leeward recovery-point create web-1", r"application-consistent")
    reader.run("leeward failover web-1 --recovery-point latest-app-consistent", MOVED, seconds=300)
    host = rig.machine("west").host
    kill_host(rig, "west", host)
    rig.wait("silence", lambda: "offline" in rig.run("status"), LOST_SECONDS)
    reader.run("leeward status", rf"{host} +offline for", r"unknown")
    gone = {"REGION": "west", "NODE": host}
    reader.run("leeward region forget-node REGION NODE", r"--with-vms", code=4, names=gone)
    reader.run("leeward region forget-node REGION NODE --with-vms", names=gone)
    lost = overlays(rig)
    reader.run("leeward failover ITEM", r"runs in west", MOVED, seconds=300)
    rig.wait_guest("west")
    kept = overlays(rig)
    stays = len(lost) == 2 and lost < kept
    reader.findings.check("what it wrote stays beside the new disks", stays, f"{lost} {kept}")
    reader.run("leeward commit ITEM")
    wait_hydrated(rig, "web-1")
    reader.run("leeward reprotect ITEM", seconds=300)
    wait_protected(rig, "web-1")


def burned(rig: Rig, reader: Reader) -> None:
    """A region burns."""
    burn(rig.data, "west")
    reader.run("leeward status")
    reader.run("leeward failover ITEM --recovery-point latest", r"runs in east", MOVED, seconds=300)
    rig.wait_guest("east")


def vault_lost(rig: Rig, reader: Reader) -> None:
    """The vault is lost."""
    urls = rig.store_urls()
    everybody = (rig.data, rig.directory / SPARE)  # who goes on changes the stores that are copied
    for place in everybody:
        kill_all(processes_of(place))
    rig.wait("everything is dead", lambda: not any(map(processes_of, everybody)))
    rig.forget_client()
    rig.run("down", "--vms")
    kept = rig.directory / "rescued"
    for index, url in enumerate(urls):
        shutil.copytree(Path(url.removeprefix("file://")), kept / str(index))
    shutil.rmtree(rig.data)
    port = free_port()
    reader.run("leeward up …", r"Leeward is up", names={"…": f"--detach --port {port}"})
    reader.values["file:///srv/west/websystem/objects"] = f"file://{kept}/0"
    reader.values["file:///srv/west/webdata/objects"] = f"file://{kept}/{len(urls) - 1}"
    reader.run(
        "leeward vault rebuild --from file:///srv/west/websystem/objects "
        "--from file:///srv/west/webdata/objects",
        r"the vaults are there",
    )
    state = rig.item().state
    reader.findings.check("the item is degraded", state is ItemState.DEGRADED, str(state))
    reader.run("leeward failover web-1", r"runs in east", MOVED, seconds=300)
    rig.wait_guest("east")


def _own(rig: Rig) -> dict[str, str]:
    return {"LEEWARD_DATA": str(rig.data), KEY_FILE: str(rig.directory / "keys")}
