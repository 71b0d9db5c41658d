"""Damage to bytes: anywhere, or in the structure of PNG and JPEG, with the checksums mended."""

import re
import struct
import zlib

import numpy as np
from fuzz import seeds

EXTREME = (0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 32, 127, 128, 255, 256, 32767, 32768, 65535, 1 << 31, (1 << 32) - 1)
PNG = b"\x89PNG\r\n\x1a\n"
HUGE_PNG = 24_000  # side of a picture that is small as a file and large in memory


def damage(rng: np.random.Generator, data: bytes, first: int = 0) -> bytes:
    """Bytes changed somewhere from `first` on: bits flipped, runs zeroed, cut out, doubled, moved, random; or cut."""
    if len(data) <= first + 1:
        return data
    new, at = bytearray(data), int(rng.integers(first, len(data)))
    run = int(min(len(data) - at, 1 << rng.integers(0, 9)))
    kind = rng.choice(["flip", "flips", "zero", "ones", "random", "delete", "double", "move", "cut", "insert"])
    if kind == "flip":
        new[at] ^= 1 << int(rng.integers(8))
    elif kind == "flips":
        for at in rng.integers(first, len(data), rng.integers(2, 20)):
            new[at] ^= 1 << int(rng.integers(8))
    elif kind in ("zero", "ones"):
        new[at : at + run] = (b"\0" if kind == "zero" else b"\xff") * run
    elif kind == "random":
        new[at : at + run] = rng.bytes(run)
    elif kind == "delete":
        del new[at : at + run]
    elif kind == "double":
        new[at:at] = data[at : at + run]
    elif kind == "move":
        to = int(rng.integers(first, len(data)))
        del new[at : at + run]
        new[to:to] = data[at : at + run]
    elif kind == "cut":
        del new[at:]
    else:
        new[at:at] = rng.bytes(run)
    return bytes(new)


def rearranged(rng: np.random.Generator, parts: list, first: int = 1) -> list:
    """One of the parts from `first` on removed, doubled, or put elsewhere."""
    if len(parts) <= first + 1:
        return parts
    parts, at, to = list(parts), *map(int, rng.integers(first, len(parts), 2))
    kind = rng.choice(["remove", "double", "move"])
    part = parts[at] if kind == "double" else parts.pop(at)
    if kind != "remove":
        parts.insert(to, part)
    return parts


def png(rng: np.random.Generator) -> bytes:
    """A damaged PNG; mostly with right checksums, which no damage by accident has."""
    if rng.random() < 0.004:
        return huge_png(rng)
    data = seeds.png(rng)
    if rng.random() < 0.15:
        return damage(rng, data, 8)
    parts = chunks(data)
    for _ in range(rng.integers(1, 3)):
        kind = rng.choice(["header", "pixels", "filter", "chunk", "order", "insert", "split"])
        at = int(rng.integers(0, len(parts)))
        if kind == "header" and parts[0][0] == b"IHDR" and len(parts[0][1]) == 13:
            parts[0] = (b"IHDR", _header(rng, parts[0][1]))
        elif kind in ("pixels", "filter", "split"):
            own = [i for i, (name, _) in enumerate(parts) if name == b"IDAT"]
            if not own:
                continue
            at = own[int(rng.integers(len(own)))]
            if kind == "filter":
                parts[at] = (b"IDAT", _inflated(rng, parts[at][1]))
            elif kind == "pixels":
                parts[at] = (b"IDAT", damage(rng, parts[at][1]))
            else:
                cut = int(rng.integers(0, len(parts[at][1]) + 1))
                parts[at : at + 1] = [(b"IDAT", parts[at][1][:cut]), (b"IDAT", parts[at][1][cut:])]
        elif kind == "chunk":
            parts[at] = (parts[at][0], damage(rng, parts[at][1]))
        elif kind == "order":
            parts = rearranged(rng, parts)
        else:
            parts.insert(at if rng.random() < 0.1 else max(1, at), _chunk(rng))
    return joined(parts)


def chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """[(name, content)] of a whole PNG, to its end chunk."""
    found, at = [], 8
    while at < len(data) and (not found or found[-1][0] != b"IEND"):
        length, name = struct.unpack_from(">I4s", data, at)
        found.append((name, data[at + 8 : at + 8 + length]))
        at += 12 + length
    return found


def joined(parts: list[tuple[bytes, bytes]]) -> bytes:
    """The PNG of these chunks, with their lengths and checksums."""
    return PNG + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts
    )


def _header(rng: np.random.Generator, data: bytes) -> bytes:
    fields = list(struct.unpack(">IIBBBBB", data))
    at = int(rng.integers(7))
    if at < 2:
        fields[at] = int(rng.choice([*EXTREME, fields[at] + 1, max(0, fields[at] - 1), 2 * fields[at]])) & 0xFFFFFFFF
    else:
        options = ((1, 2, 4, 8, 16, 3, 0), (0, 2, 3, 4, 6, 1, 7), (0, 1), (0, 1), (0, 1, 2))[at - 2]
        fields[at] = int(rng.choice(options))
    return struct.pack(">IIBBBBB", *fields)


def _inflated(rng: np.random.Generator, data: bytes) -> bytes:
    """The rows damaged, and a right zlib stream around them."""
    try:
        rows = zlib.decompress(data)
    except zlib.error:
        return data
    return zlib.compress(damage(rng, rows))


def _chunk(rng: np.random.Generator) -> tuple[bytes, bytes]:
    """A chunk that files have, or a critical one that no standard knows."""
    frame = struct.pack(">IIIIIHHBB", 0, *rng.integers(1, 40, 2), *rng.integers(0, 8, 2), 1, 10, 0, 0)
    known = {
        b"acTL": struct.pack(">II", int(rng.choice([0, 1, 2, 1000])), 0),
        b"fcTL": frame,
        b"fdAT": b"\0\0\0\1" + zlib.compress(rng.bytes(400)),
        b"tRNS": rng.bytes(int(rng.choice([0, 1, 2, 3, 6, 16, 256]))),
        b"PLTE": rng.bytes(int(rng.choice([0, 3, 4, 48, 768, 771]))),
        b"gAMA": struct.pack(">I", int(rng.choice([0, 1, 45455, 100000, (1 << 31) - 1]))),
        b"sBIT": rng.bytes(int(rng.integers(1, 5))),
        b"bKGD": rng.bytes(int(rng.choice([1, 2, 6]))),
        b"iCCP": b"x\0\0" + zlib.compress(rng.bytes(100)),
        b"zTXt": b"x\0\0" + zlib.compress(b"\0" * int(rng.choice([10, 1 << 20]))),
        b"eXIf": b"MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0\x06\0\0\0\0\0\0",  # an orientation
        b"IDAT": zlib.compress(rng.bytes(300)),
        b"IEND": b"",
        b"ABCD": rng.bytes(8),
    }
    name = list(known)[rng.integers(len(known))]
    return name, known[name]


def huge_png(rng: np.random.Generator) -> bytes:
    """A few kilobytes that ask for up to gigabytes: pixels in number, or rows beyond those of the header."""
    side, depth, kind = int(rng.choice([5_000, 7_000, HUGE_PNG])), int(rng.choice([8, 16])), int(rng.choice([0, 2, 6]))
    packer = zlib.compressobj(1)
    block = packer.compress(b"\0" * (1 << 24)) + packer.flush(zlib.Z_FULL_FLUSH)
    again = packer.compress(b"\0" * (1 << 24)) + packer.flush(zlib.Z_FULL_FLUSH)
    row = side * {0: 1, 2: 3, 6: 4}[kind] * depth // 8 + 1
    pixels = block + again * (side * row // (1 << 24) if rng.random() < 0.8 else 300)
    side = side if rng.random() < 0.8 else 16
    return joined(
        [(b"IHDR", struct.pack(">IIBBBBB", side, side, depth, kind, 0, 0, 0)), (b"IDAT", pixels), (b"IEND", b"")]
    )


def jpeg(rng: np.random.Generator) -> bytes:
    """A damaged JPEG: anywhere, in its entropy-coded bytes, in a header, or with segments moved and added."""
    return damaged_jpeg(rng, seeds.jpeg(rng))


def damaged_jpeg(rng: np.random.Generator, data: bytes) -> bytes:
    """`data` with one or two kinds of damage; half of what is cut short gets an end mark again."""
    parts = segments(data)
    for _ in range(rng.integers(1, 3)):
        kind = rng.choice(["anywhere", "entropy", "entropy", "cut", "field", "order", "insert", "scans"])
        at = int(rng.integers(1, len(parts))) if len(parts) > 1 else 0
        scans = [i for i, part in enumerate(parts) if part[1:2] == b"\xda"]
        if kind == "anywhere":
            return damage(rng, b"".join(parts), 3)
        if kind == "entropy" and scans:
            at = int(rng.choice(scans))
            parts[at] = damage(rng, parts[at], _length(parts[at]))
        elif kind == "cut" and scans:
            at = int(rng.choice(scans))
            start = _length(parts[at])
            cut = int(rng.integers(start, len(parts[at]) + 1)) if start < len(parts[at]) else start
            parts[at:] = [parts[at][:cut], b"\xff\xd9" if rng.random() < 0.8 else b""]
        elif kind == "field":
            parts[at] = _field(rng, parts[at])
        elif kind == "order":
            parts = rearranged(rng, parts)
        elif kind == "insert":
            parts.insert(at, _segment(rng))
        elif scans:
            parts[scans[-1] : scans[-1] + 1] = [parts[scans[-1]]] * int(rng.choice([2, 10, 300]))
    return b"".join(parts)


def segments(data: bytes) -> list[bytes]:
    """A whole JPEG as its markers, each with what follows; a scan holds its entropy-coded bytes."""
    starts, at = [0], 2
    while at + 4 <= len(data):
        starts.append(at)
        while data[at : at + 2] == b"\xff\xff" and at + 5 <= len(data):  # fill bytes
            at += 1
        scan = data[at + 1] == 0xDA
        at += 2 + struct.unpack_from(">H", data, at + 2)[0]
        if scan:
            found = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]").search(data, at)
            at = found.start() if found else len(data)
    starts.append(at)
    return [data[a:b] for a, b in zip(starts, [*starts[1:], len(data)], strict=True) if a < b]


def _length(part: bytes) -> int:
    """Bytes of a segment without its entropy-coded ones."""
    return 2 + struct.unpack_from(">H", part, 2)[0] if len(part) >= 4 else len(part)


def _field(rng: np.random.Generator, part: bytes) -> bytes:
    if len(part) < 5:
        return part
    new, at = bytearray(part), int(rng.integers(2, min(len(part), 40)))
    if rng.random() < 0.5 or at + 2 > len(new):
        new[at] = int(rng.choice(EXTREME)) & 0xFF
    else:
        new[at : at + 2] = struct.pack(">H", int(rng.choice(EXTREME)) & 0xFFFF)
    return bytes(new)


def _segment(rng: np.random.Generator) -> bytes:
    """A segment of another kind: fill bytes, Adobe's transform, restart interval, number of lines, a second frame."""
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0\x06\0\0\0\0\0\0"
    options = (
        b"\xff" * int(rng.choice([1, 10, 100_000])),
        b"\xff\xee\0\x0eAdobe\0d\0\0\0\0" + bytes([int(rng.integers(0, 4))]),
        b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif,
        b"\xff\xdd\0\4" + struct.pack(">H", int(rng.choice([0, 1, 2, 50, 65535]))),
        b"\xff\xdc\0\4" + struct.pack(">H", int(rng.choice(EXTREME)) & 0xFFFF),
        b"\xff\xc0\0\x0b\x08" + struct.pack(">HH", *rng.integers(1, 60, 2)) + b"\1\1\x11\0",
        b"\xff" + bytes([int(rng.integers(0xC0, 0xFF))]) + struct.pack(">H", 10) + rng.bytes(8),
        b"\xff" + bytes([int(rng.integers(0xD0, 0xDA))]),
        b"\xff\xfe\0\2",
        rng.bytes(5),
    )
    return options[rng.integers(len(options))]
