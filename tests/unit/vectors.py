"""Deletion vectors encoded by hand, as the specifications of Delta and of Roaring bitmaps say."""

from __future__ import annotations

import struct
import zlib
from collections import defaultdict

MAGIC = 1_681_511_377
Z85 = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"


def z85(data: bytes) -> str:
    data += b"\0" * (-len(data) % 4)
    text = ""
    for start in range(0, len(data), 4):
        word = int.from_bytes(data[start : start + 4], "big")
        digits = ""
        for _ in range(5):
            word, digit = divmod(word, 85)
            digits = Z85[digit] + digits
        text += digits
    return text


def runs_of(numbers: list[int]) -> list[list[int]]:
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][1] + 1 == number:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return runs


def container(numbers: list[int], *, is_run: bool) -> bytes:
    if is_run:
        runs = runs_of(numbers)
        body = b"".join(struct.pack("<HH", first, last - first) for first, last in runs)
        return struct.pack("<H", len(runs)) + body
    if len(numbers) <= 4_096:
        return struct.pack(f"<{len(numbers)}H", *numbers)
    bits = bytearray(8_192)
    for number in numbers:
        bits[number // 8] |= 1 << number % 8
    return bytes(bits)


def bitmap(numbers: list[int], *, with_runs: bool) -> bytes:
    """Return a 32-bit Roaring bitmap in the portable format."""
    chunks: dict[int, list[int]] = defaultdict(list)
    for number in sorted(numbers):
        chunks[number >> 16].append(number & 0xFFFF)
    is_run = [with_runs and index % 2 == 0 for index in range(len(chunks))]
    if with_runs:
        flags = bytearray((len(chunks) + 7) // 8)
        for index, yes in enumerate(is_run):
            flags[index // 8] |= yes << index % 8
        head = struct.pack("<I", 12_347 | (len(chunks) - 1) << 16) + bytes(flags)
    else:
        head = struct.pack("<II", 12_346, len(chunks))
    head += b"".join(struct.pack("<HH", key, len(low) - 1) for key, low in chunks.items())
    bodies = [container(low, is_run=yes) for low, yes in zip(chunks.values(), is_run, strict=True)]
    if not with_runs or len(chunks) >= 4:
        at = len(head) + 4 * len(chunks)
        for body in bodies:
            head += struct.pack("<I", at)
            at += len(body)
    return head + b"".join(bodies)


def serialized(numbers: list[int], *, with_runs: bool = False) -> bytes:
    if not numbers:
        return struct.pack("<iQ", MAGIC, 0)
    return struct.pack("<iQI", MAGIC, 1, 0) + bitmap(numbers, with_runs=with_runs)


def inline_vector(numbers: list[int], *, with_runs: bool = False) -> dict[str, object]:
    data = serialized(numbers, with_runs=with_runs)
    return {
        "storageType": "i",
        "pathOrInlineDv": z85(data),
        "sizeInBytes": len(data),
        "cardinality": len(numbers),
    }


def stored_vectors(*sets: list[int], uuid: bytes, prefix: str = ""):
    """Return path and bytes of a file of vectors, and their descriptors."""
    content = b"\x01"
    descriptors = []
    for numbers in sets:
        data = serialized(numbers)
        descriptors.append(
            {
                "storageType": "u",
                "pathOrInlineDv": prefix + z85(uuid),
                "offset": len(content),
                "sizeInBytes": len(data),
                "cardinality": len(numbers),
            }
        )
        content += struct.pack(">I", len(data)) + data + struct.pack(">I", zlib.crc32(data))
    h = uuid.hex()
    name = f"deletion_vector_{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}.bin"
    return (f"{prefix}/{name}" if prefix else name), content, descriptors
