"""What docs/operations.md shows and scenario `operations` does not run, each with the reason.

Owns: that list. A command of the page that is neither run nor named here fails a test.
"""

from __future__ import annotations

from collections.abc import Mapping

_VERB = "names the verb in a sentence; whole commands of it are run"

NOT_RUN: Mapping[str, str] = {
    "apt-get install qemu-guest-agent": "typed in the guest; the scenario's guest has it",
    "leeward vm create --display vga": "an option; the scenario's VM web-1 is created with it",
    "leeward protect --cache-account": "an option of `leeward protect`; its stores are made here",
    "leeward failover": _VERB,
    "leeward unprotect": _VERB,
    "leeward export": _VERB,
    "leeward item show": _VERB,
    "leeward item update ITEM": _VERB,
    "leeward item update ITEM --cache-account ACCOUNT": "scenario `kill-everywhere` changes it",
    "leeward policy create": _VERB,
    "leeward vm trim": _VERB,
    "leeward protect": "names the verb in a sentence; the scenario's VMs are protected by it",
    "leeward recovery-plan run site --recovery-point latest-shared": "scenario `group` runs it",
    "leeward vm start": "names the verb in a sentence; starts a source that is not wanted here",
}
