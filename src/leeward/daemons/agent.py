"""`leeward agent`: one host's fabric and mobility.

Owns: which driver, which directories, in which order. Must not know: what any verb does. A
composition root; the rooms below know nothing of each other's places.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from leeward.agent.drills import DrillVerbs
from leeward.agent.fabric_verbs import FabricVerbs
from leeward.agent.host import HostAgent
from leeward.agent.recovery import ExportPort, HydratorPort, Recoveries
from leeward.agent.replication import Replications, ReplicatorPort
from leeward.agent.scripts import Scripts
from leeward.core.clock import SystemClock
from leeward.core.errors import Conflict, NotFound
from leeward.daemons.node import NodeHome, NodeOptions, check_options, run_node, set_environment
from leeward.daemons.places import (
    Places,
    private_directory,
    run_directory,
    shared_memory_directory,
)
from leeward.daemons.signals import StopSignal
from leeward.export.hydration import HydrationPlan, Hydrator
from leeward.export.reading import digest_disks
from leeward.export.start import ExportHandle, begin_export, find_export
from leeward.fabric.driver import FabricDriver
from leeward.fabric.ports import wait_port
from leeward.fabric.probes import run_probes
from leeward.fabric.qemu_driver import QemuDriver
from leeward.fabric.tunnels import TunnelEnd, settle_end
from leeward.mobility.replicator import Places as ReplicatorPlaces
from leeward.mobility.replicator import Replicator
from leeward.mobility.thaw_client import thaw_left_guests
from leeward.mobility.trim import trim_guest
from leeward.observability.log import configure_logging, get_logger
from leeward.processor.seed import seed_replica
from leeward.protocol.fabric import BootSpec, ReplicationSpec, SeedResult, SeedSpec
from leeward.protocol.messages import Role
from leeward.qemu.image_server import ServedImage, serve_image
from leeward.replica.catalog import Catalog
from leeward.replica.host_keys import open_keyed

log = get_logger()


def run_agent(options: NodeOptions) -> None:
    """The host's agent runs until it is told to stop; VMs, taps and exports outlive it.

    Raises: InvalidRequest, Conflict when another agent has its directory, Unavailable.
    """
    check_options(options, Role.AGENT)
    stop = StopSignal()
    configure_logging()
    set_environment(options)
    places = Places(options.data)
    with NodeHome(places.host(options.region, options.name), Role.AGENT, options) as home:
        node = build_agent(
            home.directory,
            region=options.region,
            name=options.name,
            storage_root=places.storage(options.region),
            tunnel=settle_end(options.tunnel, home.directory / "tunnel"),
        )
        run_node(home, node, options, stop)


def build_agent(
    directory: Path,
    *,
    region: str,
    name: str,
    storage_root: Path,
    tunnel: TunnelEnd | None = None,
) -> HostAgent:
    """Return the agent of a host that keeps its state in `directory`, with leftovers removed.

    tunnel: where tunnels from the region's other hosts end here.
    """
    run_dir = run_directory(directory, name)
    thaw_left_guests(run_dir, directory, SystemClock())  # before anything that may take its time
    shm_dir = shared_memory_directory(directory, name)
    private_directory(storage_root)
    driver = QemuDriver(directory, run_dir, tunnel=tunnel)
    threading.Thread(target=driver.prepare, name="prepare", daemon=True).start()
    for repair in driver.remove_leftovers():
        log.warning("repaired", what=repair)
    recoveries = Recoveries(
        driver,
        directory / "recoveries",
        Exports(run_dir, directory),
        hydrators(driver),
    )
    return HostAgent(
        driver,
        FabricVerbs(driver, storage_root),
        Replications(
            driver, directory / "replications", replicators(driver, directory, run_dir, shm_dir)
        ),
        recoveries,
        seed=seeding(driver, run_dir),
        trim_guest=trim_guest,
        scripts=Scripts(directory / "scripts", directory / "script-runs"),
        drills=DrillVerbs(driver, recoveries, probe=run_probes, digest=digest_disks),
        wait_port=wait_port,
        storage_root=storage_root,
        tunnel=str(tunnel or ""),
    )


def seeding(driver: FabricDriver, run_dir: Path) -> Callable[[SeedSpec], SeedResult]:
    """Return what seeds replicas with the disks of this host's stopped VMs."""

    def seed(spec: SeedSpec) -> SeedResult:
        try:
            images = {image.disk: image for image in driver.disk_images(spec.vm_id)}
        except (NotFound, Conflict) as error:
            return SeedResult(is_seeded=False, problem=str(error))
        with ExitStack() as stack:
            disks: dict[str, ServedImage] = {}
            for replica in spec.replicas:
                image = images.get(replica.disk)
                if image is None or not image.path.exists():
                    return SeedResult(is_seeded=False, problem=f"disk {replica.disk} is gone")
                served = serve_image(image.path, image.format, run_dir)
                disks[replica.disk] = stack.enter_context(served)
            return seed_replica(spec, partial(open_keyed, key_id=spec.key_id), disks, SystemClock())

    return seed


@dataclass(frozen=True, slots=True)
class Exports:
    """Recovery points served to this host's VMs (agent.recovery.ExportsPort)."""

    run_dir: Path
    data_dir: Path

    def start(self, export_id: str, boot: BootSpec) -> ExportHandle:
        """Return the export of the boot's recovery point, which is being opened."""
        return begin_export(
            self.run_dir,
            self.data_dir,
            export_id,
            catalog_url=boot.catalog_url,
            item_id=boot.item_id,
            point_id=boot.point_id,
            replicas=boot.replicas,
        )

    def disk_sizes(self, boot: BootSpec) -> dict[str, int]:
        """Return the disks that the recovery point has, and their bytes. Raises: NotFound."""
        catalog = Catalog.open(open_keyed(boot.catalog_url), boot.item_id)
        return catalog.disk_sizes(catalog.find_point(boot.point_id))

    def find(self, export_id: str) -> ExportHandle | None:
        """Return the export started under that id, running or not, or None."""
        return find_export(self.run_dir, self.data_dir, export_id)


def replicators(
    driver: FabricDriver, data_dir: Path, run_dir: Path, shm_dir: Path
) -> Callable[[ReplicationSpec, Callable[[], None]], ReplicatorPort]:
    """Return what makes a replicator for a VM of this host."""

    def make(spec: ReplicationSpec, on_news: Callable[[], None]) -> ReplicatorPort:
        return Replicator(
            spec,
            open_session=lambda: driver.qmp(spec.vm_id),
            open_store=partial(open_keyed, key_id=spec.key_id),
            on_news=on_news,
            places=ReplicatorPlaces(
                run_dir=run_dir,
                shm_dir=shm_dir,
                data_dir=data_dir,
                nbd_socket=driver.nbd_socket(spec.vm_id),
                agent_socket=lambda: driver.agent_socket(spec.vm_id),
            ),
        )

    return make


def hydrators(driver: FabricDriver) -> Callable[[BootSpec, ExportPort], HydratorPort]:
    """Return what makes a hydrator for a VM that reads from an export."""

    def make(boot: BootSpec, export: ExportPort) -> HydratorPort:
        vm_id = boot.vm.vm_id
        plan = HydrationPlan(
            vm_id=vm_id,
            disks=tuple(replica.disk for replica in boot.replicas),
            nbd_socket=driver.nbd_socket(vm_id),
        )
        return Hydrator(
            plan,
            qmp=lambda: driver.qmp(vm_id),
            base=export,
            on_filled=lambda: driver.forget_bases(vm_id),
        )

    return make
