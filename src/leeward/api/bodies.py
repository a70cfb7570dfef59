"""Request bodies of the public API: what a caller may send, field by field; here, about vaults.

Owns: their shape and the OpenAPI text that comes of it. Must not know: what is done with them.
Each turns itself into the model's own value; unknown fields are refused, so that a misspelt one is
not silently dropped.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from leeward.core.errors import InvalidRequest
from leeward.failover.shared import LATEST_SHARED
from leeward.model.recovery import (
    APP_CONSISTENT_SECONDS_MIN,
    DEFAULT_TIERS,
    POWER_OFF_SECONDS,
    TRIM_SECONDS_MAX,
    TRIM_SECONDS_MIN,
    BandwidthLimit,
    Policy,
    RetentionTier,
    minute_of_day,
)
from leeward.model.resources import (
    MEMORY_MIB_MIN,
    VCPUS_MAX,
)
from leeward.protection.options import ProtectOptions
from leeward.protection.update import ItemChanges


class Body(BaseModel):
    """Base: frozen, and nothing unknown gets in."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _is_none_or_enough(memory_mib: int) -> int:
    if 0 < memory_mib < MEMORY_MIB_MIN:
        raise ValueError(f"{memory_mib} MiB is too little for a VM: at least {MEMORY_MIB_MIN}")
    return memory_mib


TargetMemory = Annotated[int, Field(ge=0, le=4 << 20), AfterValidator(_is_none_or_enough)]


class EmptyBody(Body):
    """For resources that are nothing but their name."""


class NetworkMappingBody(Body):
    target_network: str = Field(description="in the target region; VMs come out in it")
    one_way: bool = Field(default=False, description="leave the opposite direction as it is")


class TierBody(Body):
    every_seconds: int = Field(ge=0)
    for_seconds: int = Field(gt=0)


class BandwidthBody(Body):
    bytes_per_second: int = Field(ge=0, le=1 << 50, description="0: any amount")
    start: str = Field(default="00:00", description="by the source host's clock")
    end: str = "24:00"

    @field_validator("start", "end")
    @classmethod
    def _check_time(cls, value: str) -> str:
        try:
            minute_of_day(value)
        except InvalidRequest as error:
            raise ValueError(str(error)) from error
        return value


class PolicyBody(Body):
    cut_interval_seconds: float = Field(default=1.0, ge=0.2, le=3600)
    tiers: tuple[TierBody, ...] = Field(
        default=tuple(
            TierBody(every_seconds=tier.every_seconds, for_seconds=tier.for_seconds)
            for tier in DEFAULT_TIERS
        ),
        min_length=1,
        max_length=8,
    )
    compression: Literal["zstd", "lz4", "none"] = "zstd"
    encryption: Literal["none", "aes-256-gcm"] = "none"
    rpo_alert_seconds: float = Field(default=30.0, gt=0)
    shared_interval_seconds: float = Field(
        default=60.0,
        ge=1,
        le=86400,
        description="between two recovery points that the items of a consistency group share",
    )
    bandwidth: tuple[BandwidthBody, ...] = Field(default=(), max_length=24)
    app_consistent_seconds: int = Field(
        default=0,
        ge=0,
        le=30 * 86400,
        description="how often guests are frozen for application-consistent points; 0: when asked",
    )
    trim_seconds: int = Field(
        default=0,
        ge=0,
        le=TRIM_SECONDS_MAX,
        description="how often guests are asked to give back what they do not use; 0: when asked",
    )

    @field_validator("app_consistent_seconds")
    @classmethod
    def _check_app_consistent(cls, value: int) -> int:
        if 0 < value < APP_CONSISTENT_SECONDS_MIN:
            raise ValueError(f"{value} is neither 0 nor at least {APP_CONSISTENT_SECONDS_MIN}")
        return value

    @field_validator("trim_seconds")
    @classmethod
    def _check_trim(cls, value: int) -> int:
        if 0 < value < TRIM_SECONDS_MIN:
            raise ValueError(f"{value} is neither 0 nor at least {TRIM_SECONDS_MIN}")
        return value

    def policy(self, name: str) -> Policy:
        """Return the policy that is asked for."""
        plain = self.model_dump()
        plain["tiers"] = tuple(RetentionTier(**tier) for tier in plain["tiers"])
        plain["bandwidth"] = tuple(BandwidthLimit(**limit) for limit in plain["bandwidth"])
        return Policy(name=name, **plain)


class ConsistencyGroupBody(Body):
    items: tuple[str, ...] = Field(description="names of replicated items, 2 to 32")


class GroupFailoverBody(Body):
    recovery_point: str = Field(
        default=LATEST_SHARED, description="latest-shared, or the id of a shared point"
    )


class GroupChangeBody(Body):
    recovery_point: str = Field(description="latest-shared, or the id of a shared point")


class ScrubBody(Body):
    dry_run: bool = False


class CompactBody(Body):
    dry_run: bool = False


class ReplicasBody(Body):
    region: str = Field(default="", description='whose storage accounts; "": every region\'s')
    account: str = Field(default="", description='"": every account')


class DeleteReplicaBody(Body):
    even_if_held: bool = Field(
        default=False, description="though readers have pinned it: their hosts are lost"
    )


class UseKeyBody(Body):
    key_id: str


class RebuildBody(Body):
    stores: tuple[str, ...] = Field(min_length=1, max_length=64, description="object store URLs")
    region: str = Field(default="", description='whose worker reads them; "": any that answers')


class ProtectBody(Body):
    source_region: str
    vm: str
    target_region: str
    policy: str = Field(default="", description='"": the policy named "default"')
    target_resource_group: str = ""
    target_networks: dict[str, str] = Field(default={}, description="source → target network")
    target_accounts: dict[str, str] = Field(default={}, description="disk → target account")
    cache_account: str = ""
    target_availability_set: str = Field(default="", description='"none": none')
    target_vm: str = ""
    vcpus: int = Field(default=0, ge=0, le=VCPUS_MAX, description="0: as the source")
    memory_mib: TargetMemory = Field(default=0, description="0: as the source")
    addresses: dict[str, str] = Field(default={}, description="network interface → address")
    exclude_disks: tuple[str, ...] = ()
    plan_only: bool = False

    def options(self) -> ProtectOptions:
        """Return what the planner is told."""
        return ProtectOptions(**self.model_dump(exclude={"plan_only"}))


class UpdateItemBody(Body):
    """Empty: as it is."""

    policy: str = Field(default="", description="of the item's vault; it holds at once")
    target_vm: str = ""
    target_resource_group: str = ""
    vcpus: int = Field(default=0, ge=0, le=VCPUS_MAX)
    memory_mib: TargetMemory = 0
    target_availability_set: str = Field(default="", description='"none": none')
    target_networks: dict[str, str] = Field(
        default={}, description="network interface → network, or network/subnet"
    )
    addresses: dict[str, str] = Field(default={}, description="network interface → address")
    test_networks: dict[str, str] = Field(
        default={},
        description="of its test VMs: network interface → network set aside for tests, or "
        'network/subnet, or "isolated"',
    )
    test_addresses: dict[str, str] = Field(
        default={}, description="of its test VMs: network interface → address there"
    )
    cache_account: str = Field(
        default="", description="of the source's region; changed alone, in a job of its own"
    )

    def changes(self) -> ItemChanges:
        """Return what is to be changed of the VM that a failover makes, and the policy."""
        return ItemChanges(**self.model_dump(exclude={"cache_account"}))


class FailoverBody(Body):
    recovery_point: str = Field(
        default="latest",
        description='"latest", "latest-processed", "latest-app-consistent", an id, or a time',
    )
    planned: bool = Field(default=False, description="shut the source down first and lose nothing")
    power_off_seconds: float = Field(
        default=POWER_OFF_SECONDS,
        ge=0,
        le=3600,
        description="planned: how long the guest may take to power off before it is paused",
    )


class RehearsalBody(Body):
    recovery_point: str = Field(
        default="latest",
        description='"latest", "latest-processed", "latest-app-consistent", an id, or a time',
    )
    forwards: tuple[int, ...] = Field(
        default=(), max_length=64, description="TCP ports of the test VM forwarded on its host"
    )
    network: str = Field(
        default="",
        max_length=130,
        description="network of the target region set aside for tests, or network/subnet, or "
        '"isolated"; "": as the item is set, isolated copies of its networks by default',
    )
    networks: dict[str, str] = Field(
        default={}, description="the same of single network interfaces, by name"
    )


class ChangePointBody(Body):
    recovery_point: str = Field(
        description='"latest-processed", "latest-app-consistent", an id, or a time (ISO 8601)'
    )
