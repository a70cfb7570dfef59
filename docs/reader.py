"""Restores a disk from Leeward's stored objects, without Leeward. Written from FORMAT.md alone.

    reader.py CATALOG_STORE ITEM                                     lists the recovery points
    reader.py CATALOG_STORE ITEM POINT DISK OUTPUT [DISK_STORE]      restores a disk to a file

CATALOG_STORE, DISK_STORE: directories of file stores, or copies of a bucket's objects; without
DISK_STORE the disk's objects lie in CATALOG_STORE. POINT: an id, or "latest". The keys of encrypted
objects are in the file that LEEWARD_KEY_FILE names. Needs zstandard; cryptography or lz4 if used.
"""

import hashlib
import hmac
import json
import os
import sys
import zlib
from functools import lru_cache
from pathlib import Path
from struct import iter_unpack, unpack, unpack_from

import zstandard

KEYS = {}


def check(is_good, complaint):
    if not is_good:
        sys.exit(f"reader: {complaint}")


def load_keys(path):  # 2
    for line in Path(path).read_text().splitlines():
        if word := line.split("#")[0].strip():
            secret = bytes.fromhex(word)
            key_id = hmac.digest(secret, b"leeward key id", "sha256")[:8]
            KEYS[key_id] = hmac.digest(secret, b"leeward object key", "sha256")


def decrypt(seal, number, part, head=b""):
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    check(seal[:8] in KEYS, f"the key {seal[:8].hex()} is not in the file LEEWARD_KEY_FILE names")
    key = hmac.digest(KEYS[seal[:8]], seal[8:], "sha256")
    return AESGCM(key).decrypt(number.to_bytes(12, "little"), part, head)


def read_envelope(path, kind):
    data = path.read_bytes()
    magic, version, mode, _, found, length, _ = unpack_from("<4sHBB4sIQ", data)
    check((magic, version, found) == (b"LWEN", 1, kind) and mode < 2, f"{path}: another format")
    start = 24 + 40 * mode
    body, end = data[start : start + length], start + length
    check(hashlib.sha256(data[:end]).digest() == data[end:], f"{path} is damaged")
    return json.loads(decrypt(data[24:64], 0, body, data[:64]) if mode else body)


def point_id(cut):
    return f"rp-{cut['epoch']:04d}-{cut['sequence']:08d}"


def read_catalog(root, item):  # 6
    """Return (cuts, ids of the recovery points), both oldest first."""
    folder = root / "items" / item
    version, digest, cuts, points = 0, "", [], []
    newest = max((path.name for path in (folder / "catalog").glob("[0-9]*")), default="")
    for path in sorted((folder / "snapshots").glob("*"), reverse=True):
        if (state := read_envelope(path, b"snap")).get("is_complete"):
            version, digest, cuts = state["version"], state["sha256"], list(state["cuts"])
            points = [point_id({"epoch": e, "sequence": s}) for e, s in state["kept"]]
            break
    while (path := folder / "catalog" / f"{version + 1:016d}").exists():
        record = read_envelope(path, b"ctlg")
        check(record["parent_sha256"] == digest, f"{path} does not follow the version before")
        version, digest = version + 1, hashlib.sha256(path.read_bytes()).hexdigest()
        log = {(new["epoch"], new["sequence"]): new for new in record.get("log", [])}
        for cut, entry in [(each, entry) for each in cuts for entry in each["disks"]]:
            if record["kind"] == "compact" and entry["disk"] == record["disk"]:
                new = log.get((cut["epoch"], cut["sequence"]), {})
                entry.update({"segments": [], "checkpoint": ""} | new)
        cuts += record.get("cuts", [])
        points += [point_id(c) for c in record.get("cuts", []) if c["consistency"] != "none"]
        points = [point for point in points if point not in record.get("dropped", [])]
    check(newest <= f"{version:016d}", f"{item}: there is no version {version + 1}, but {newest}")
    return cuts, points


def disk_log(cuts, point, disk):
    at = [point_id(cut) for cut in cuts].index(point)
    entries = [e for cut in cuts[: at + 1] for e in cut["disks"] if e["disk"] == disk]
    check(any(e["disk"] == disk for e in cuts[at]["disks"]), f"{point} has no disk {disk}")
    last = max([i for i, entry in enumerate(entries) if entry.get("checkpoint")], default=-1)
    segments = [number for entry in entries[last + 1 :] for number in entry.get("segments", [])]
    return entries[-1]["size_bytes"], entries[last]["checkpoint"] if last >= 0 else "", segments


class Segment:  # 3
    def __init__(self, root, item, disk, segment_id):
        name = f"{segment_id >> 28:05x}-{segment_id & 0xFFFFFFF:07x}"
        self.data = data = (root / "items" / item / "disks" / disk / "segments" / name).read_bytes()
        fields = unpack_from("<4sHBBIIIIQQHHI", data)
        magic, version, self.compression, mode, unit, extents, frames, length = fields[:8]
        check((magic, version) == (b"LWSG", 1) and mode < 2, f"{name}: another format")
        at = 48 + padded(fields[10] + fields[11])
        self.seal = data[at : at + 40 * mode]
        head, at = data[: at + 40 * mode], at + 40 * mode
        table, at = data[at : at + 16 * (extents + mode)], at + 16 * (extents + mode)
        table = decrypt(self.seal, 0, table, head) if mode else table
        self.extents = list(iter_unpack("<QII", table))
        self.length, self.frames, end = length * unit, [], at + 8 * frames
        start = end + 4
        for stored, crc in iter_unpack("<II", data[at:end]):
            self.frames.append((start, stored, crc))
            start += stored
        good = zlib.crc32(data[:end]) == unpack_from("<I", data, end)[0] and start == len(data)
        check(good, f"segment {name} of {disk} is damaged")

    def frame(self, index):
        start, stored, crc = self.frames[index]
        packed = self.data[start : start + stored]
        check(zlib.crc32(packed) == crc, f"frame {index} of a segment is damaged")
        packed = decrypt(self.seal, index + 1, packed) if self.seal else packed
        logical = min(65536, self.length - index * 65536)
        if len(packed) == logical:
            return packed
        if self.compression == 2:
            import lz4.block

            return lz4.block.decompress(packed, uncompressed_size=logical)
        return zstandard.decompress(packed, max_output_size=logical)


def padded(length):
    return length + -length % 8


def read_checkpoint(root, name):  # 5
    """Return {block: reference} of all blocks that are not zeros."""
    data = (root / name).read_bytes()
    magic, version, item, disk, mode, h, _, _, o, i = unpack_from("<4sHHHHIQQII", data)
    check((magic, version) == (b"LWCK", 1) and mode < 2, f"{name}: another format")
    check(zlib.crc32(data[: h - 4]) == unpack_from("<I", data, h - 4)[0], f"{name} is damaged")
    at = 40 + padded(item + disk)
    seal, body = data[at : at + 40 * mode], data[at + 40 * mode : h - 4]
    body = decrypt(seal, 0, body, data[: at + 40]) if mode else body
    at, objects, blocks = 0, [], {}
    for _ in range(o):
        length, is_sealed = unpack_from("<H", body, at)[0] & 0x7FFF, body[at + 1] >> 7
        end = at + 2 + length
        objects.append((body[at + 2 : end].decode(), body[end : end + 40 * is_sealed]))
        at = end + 40 * is_sealed
    objects[0] = (name, seal)
    for entry in range(i):
        where = padded(at) + 32 * entry
        page, number, offset, stored, k, crc, _ = unpack_from("<IIQIIII", body, where)
        packed = (root / objects[number][0]).read_bytes()[offset : offset + stored]
        check(zlib.crc32(packed) == crc, f"page {page} of {objects[number][0]} is damaged")
        if objects[number][1]:
            packed = decrypt(objects[number][1], page + 1, packed)
        words = unpack(f"<{16384 + 16 * k}Q", zstandard.decompress(packed))
        for chunk, word in enumerate(words[:16384]):
            row = 16384 + 16 * (word & ~(1 << 63))
            for block in range(16 if word else 0):
                if reference := words[row + block] if word >> 63 else word + block:
                    blocks[(page * 16384 + chunk) * 16 + block] = reference
    return blocks


def restore(catalog, item, point, disk, output, store):  # 7
    cuts, points = read_catalog(catalog, item)
    point = points[-1] if points and point == "latest" else point
    check(point in points, f"{item} has no recovery point {point}")
    size, checkpoint, added = disk_log(cuts, point, disk)
    blocks = read_checkpoint(store, checkpoint) if checkpoint else {}
    for segment_id in added:
        for start, count, position in Segment(store, item, disk, segment_id).extents:
            if position != 0xFFFFFFFF:
                blocks |= {start + i: segment_id << 16 | position + i for i in range(count)}
            else:
                for block in [b for b in blocks if start <= b < start + count]:
                    del blocks[block]
    segment = lru_cache(32)(lambda segment_id: Segment(store, item, disk, segment_id))
    frame = lru_cache(1024)(lambda segment_id, index: segment(segment_id).frame(index))
    with open(output, "wb") as file:
        file.truncate(size)
        for block, reference in sorted(blocks.items()):
            at = (reference & 0xFFFF) * 4096
            data = frame(reference >> 16, at // 65536)[at % 65536 : at % 65536 + 4096]
            file.seek(block * 4096)
            file.write(data[: size - block * 4096])
    print(point)


if __name__ == "__main__":
    check(len(sys.argv) in (3, 6, 7), __doc__)
    if os.environ.get("LEEWARD_KEY_FILE"):
        load_keys(os.environ["LEEWARD_KEY_FILE"])
    if len(sys.argv) == 3:
        print("\n".join(read_catalog(Path(sys.argv[1]), sys.argv[2])[1]))
    else:
        restore(Path(sys.argv[1]), *sys.argv[2:6], Path((sys.argv + sys.argv[1:2])[6]))
