"""What people type, parsed: NAME=KEY=VALUE lists, REGION/NAME references, sizes, durations.

Owns: the little grammars of options. Must not know: what is done with the values. Pure.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from leeward.core.errors import InvalidRequest
from leeward.core.ids import check_name
from leeward.core.units import MIB, parse_size
from leeward.model.drills import PROBE_SECONDS, Probe, ProbeKind
from leeward.model.recovery import BandwidthLimit, RetentionTier, minute_of_day
from leeward.model.resources import Disk, NetworkInterface, Subnet

_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True, slots=True)
class Reference:
    """A resource of a region."""

    region: str
    name: str


def parse_reference(text: str, region: str | None) -> Reference:
    """Return the resource that "REGION/NAME", or "NAME" with --region, names.

    Raises: InvalidRequest when no region is named, or two different ones.
    """
    before, slash, name = text.rpartition("/")
    if not name:
        raise InvalidRequest(
            f"{text!r} names nothing", field="name", hint="REGION/NAME, or NAME with --region"
        )
    if not slash and not region:
        raise InvalidRequest(
            f"in which region is {text}?", field="region", hint=f"REGION/{text}, or --region REGION"
        )
    if before and region and before != region:
        raise InvalidRequest(f"{text} is not in region {region}", field="region")
    return Reference(check_name(before or region or "", field="region"), check_name(name))


def parse_subnet(text: str) -> Subnet:
    """Return the subnet that "NAME=CIDR" describes."""
    name, equals, prefix = text.partition("=")
    if not equals or not prefix:
        raise InvalidRequest(
            f"--subnet: {text!r} is not NAME=PREFIX", hint="write it like front=10.10.1.0/24"
        )
    return Subnet(name=check_name(name, field="subnet"), prefix=prefix)


def parse_disk(text: str) -> Disk:
    """Return the disk that "NAME=ACCOUNT[,size=SIZE][,image=PATH][,format=raw|qcow2]" describes."""
    name, account, options = _named("--disk", text, {"size", "image", "format"})
    if not options.keys() & {"size", "image"}:
        raise InvalidRequest(
            f"--disk {name}: neither a size nor an image is given",
            field="disk",
            hint="add ,size=8G or ,image=PATH",
        )
    kind = options.get("format", "raw")
    if kind not in ("raw", "qcow2"):
        raise InvalidRequest(f"--disk {name}: format {kind!r} is neither raw nor qcow2")
    size = options.get("size")
    return Disk(
        name=name,
        storage_account=check_name(account, field="storage account"),
        size_bytes=parse_size(size, field=f"--disk {name}: size") if size else 0,
        format=kind,
        image=options.get("image", ""),
    )


def parse_nic(text: str) -> NetworkInterface:
    """Return the interface that "NAME=NETWORK/SUBNET[,address=IP][,mac=MAC]" describes."""
    name, place, options = _named("--nic", text, {"address", "mac"})
    network, slash, subnet = place.partition("/")
    if not slash:
        raise InvalidRequest(
            f"--nic {name}: {place!r} is not NETWORK/SUBNET", hint="write it like front=corp/front"
        )
    return NetworkInterface(
        name=name,
        network=check_name(network, field="network"),
        subnet=check_name(subnet, field="subnet"),
        address=options.get("address", ""),
        mac=options.get("mac", ""),
    )


def parse_memory(text: str) -> int:
    """Return MiB for "256M" or "2G"; a bare number is MiB."""
    size = parse_size(f"{text}M" if text.strip().isdigit() else text, field="--memory")
    if size < MIB or size % MIB:
        raise InvalidRequest(f"--memory: {text!r} is not a whole number of MiB", field="memory")
    return size // MIB


def parse_duration(text: str, *, field: str) -> int:
    """Return seconds for "90s", "10m", "2h", "1d" or a plain number of seconds."""
    number = text.strip().rstrip("smindh")
    unit = text.strip()[len(number) :] or "s"
    if not number.isdigit() or unit not in _SECONDS:
        raise InvalidRequest(f"{field}: {text!r} is not a duration", hint="like 90s, 10m, 2h or 1d")
    return int(number) * _SECONDS[unit]


def parse_seconds(text: str, *, field: str) -> float:
    """Return seconds for a duration, or for a plain number with decimals."""
    if re.fullmatch(r"\d+\.\d+", text.strip()):
        return float(text)
    return float(parse_duration(text, field=field))


def parse_tier(text: str) -> RetentionTier:
    """Return the tier that "EVERY:FOR" describes, "all" or a duration for EVERY ("1m:2h")."""
    every, colon, kept = text.partition(":")
    if not colon:
        raise InvalidRequest(f"--tier: {text!r} is not EVERY:FOR", hint="like all:10m or 1h:1d")
    return RetentionTier(
        every_seconds=0 if every == "all" else parse_duration(every, field="--tier"),
        for_seconds=parse_duration(kept, field="--tier"),
    )


def parse_probe(text: str) -> Probe:
    """Return the probe that "tcp:PORT" or "http:PORT/PATH" describes, with ",status=204",
    ",text=TEXT" and ",timeout=2m" behind it."""
    head, *rest = text.split(",")
    kind, _, target = head.partition(":")
    port, slash, path = target.partition("/")
    if kind not in ("tcp", "http") or not port.isdigit() or (kind == "tcp" and slash):
        raise InvalidRequest(
            f"--probe: {text!r} is not a probe",
            field="--probe",
            hint="like tcp:5432 or http:8080/check,status=200,text=ok,timeout=2m",
        )
    known = {"timeout"} | ({"status", "text"} if kind == "http" else set())
    options = _options("--probe", rest, known)
    status = options.get("status", "200")
    if not status.isdigit():
        raise InvalidRequest(f"--probe: status {status!r} is not a number", field="--probe")
    timeout = options.get("timeout", "")
    return Probe(
        kind=ProbeKind(kind),
        port=int(port),
        path=f"/{path}",
        status=int(status),
        text=options.get("text", ""),
        timeout_seconds=parse_duration(timeout, field="timeout") if timeout else PROBE_SECONDS,
    )


def parse_bandwidth(text: str) -> BandwidthLimit:
    """Return the limit that "SIZE" or "HH:MM-HH:MM=SIZE" describes, SIZE in bytes a second."""
    when, equals, size = text.rpartition("=")
    start, dash, end = when.partition("-")
    if equals and not dash:
        raise InvalidRequest(
            f"--bandwidth: {text!r} is not a limit", hint="like 20M or 08:00-18:00=5M"
        )
    limit = BandwidthLimit(
        bytes_per_second=parse_size(size, field="--bandwidth"),
        **({"start": start, "end": end} if equals else {}),
    )
    for time in (limit.start, limit.end):
        try:
            minute_of_day(time)
        except InvalidRequest as error:
            raise InvalidRequest(
                f"--bandwidth: {error.message}", field="bandwidth", hint=error.hint
            ) from error
    return limit


def parse_pairs(option: str, texts: list[str]) -> dict[str, str]:
    """Return the mapping that several "KEY=VALUE" make."""
    pairs = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not (key and equals and value):
            raise InvalidRequest(f"{option}: {text!r} is not NAME=NAME")
        pairs[key] = value
    return pairs


def _named(option: str, text: str, known: set[str]) -> tuple[str, str, dict[str, str]]:
    """Return (name, value, options) of "NAME=VALUE[,KEY=VALUE]…". Values hold no comma."""
    head, *rest = text.split(",")
    name, equals, value = head.partition("=")
    if not equals or not value:
        raise InvalidRequest(f"{option}: {text!r} does not begin with NAME=…")
    options = _options(f"{option} {name}", rest, known)
    return check_name(name, field=f"{option} name"), value, options


def _options(where: str, parts: list[str], known: set[str]) -> dict[str, str]:
    options = {}
    for part in parts:
        key, equals, setting = part.partition("=")
        if not equals or key not in known:
            raise InvalidRequest(
                f"{where}: {part!r} is not understood",
                hint=f"known are {', '.join(sorted(f'{each}=…' for each in known))}",
            )
        options[key] = setting
    return options
