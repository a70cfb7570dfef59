"""What a caller may choose when enabling replication.

Owns: the choices. Must not know: what they lead to, that is plan.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field

NO_AVAILABILITY_SET = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProtectOptions:
    """Empty choices take the defaults of the plan."""

    source_region: str
    vm: str
    target_region: str
    policy: str = ""
    target_resource_group: str = ""
    target_networks: dict[str, str] = field(default_factory=dict)
    """source network → target network."""
    target_accounts: dict[str, str] = field(default_factory=dict)
    """disk → target storage account."""
    cache_account: str = ""
    target_availability_set: str = ""
    """NO_AVAILABILITY_SET: none."""
    target_vm: str = ""
    vcpus: int = 0
    memory_mib: int = 0
    addresses: dict[str, str] = field(default_factory=dict)
    """network interface → address."""
    exclude_disks: tuple[str, ...] = ()
