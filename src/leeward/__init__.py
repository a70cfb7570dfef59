"""Leeward: self-hosted site recovery for virtual machines.

Kept empty of imports on purpose: the tap and the watchdog start from this package and must stay
small.
"""

__version__ = "0.1.0"
