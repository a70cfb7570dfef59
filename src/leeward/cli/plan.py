"""The plan of enabling replication, for people: what is created, what is reused, what goes where.

Owns: how it looks. Must not know: how it was made.
"""

from __future__ import annotations

from leeward.cli import output
from leeward.protection.plan import ProtectionPlan


def print_plan(plan: ProtectionPlan) -> None:
    """Print the plan."""
    vm = plan.target_vm
    output.print_fields(
        [
            ("source", f"{plan.source_region}/{plan.source_vm}"),
            ("target", f"{plan.target_region}/{vm.name}, {vm.vcpus} vCPU, {vm.memory_mib} MiB"),
            ("vault, policy", f"{plan.vault}, {plan.policy}"),
            ("excluded disks", ", ".join(plan.excluded_disks)),
        ]
    )
    output.say("")
    output.print_table(
        ["RESOURCE", "REGION", "NAME", "ACTION", "FOR"],
        [[r.kind, r.region, r.name, r.action, r.detail] for r in plan.resources],
    )
    output.say("")
    output.print_table(
        ["DISK", "SOURCE ACCOUNT", "CACHE", "TARGET ACCOUNT"],
        [
            [
                d.disk,
                d.source_account,
                f"{plan.cache_region}/{plan.cache_account}",
                d.target_account,
            ]
            for d in plan.disks
        ],
    )
    output.say("")
    output.print_table(
        ["INTERFACE", "SOURCE", "TARGET"],
        [
            [
                nic.name,
                f"{nic.source_network}/{nic.source_subnet} {nic.source_address}",
                f"{nic.target_network}/{nic.target_subnet} {nic.target_address}",
            ]
            for nic in plan.nics
        ],
    )
    if plan.mappings:
        output.say("")
        output.print_table(
            ["NETWORK MAPPING", ""],
            [
                [f"{m.source_region}/{m.source_network}", f"→ {m.target_region}/{m.target_network}"]
                for m in plan.mappings
            ],
        )
    output.say("\nnothing has been created; the same command without --plan does it")
