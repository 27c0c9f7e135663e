"""Files with something wrong with them, for tests/fuzz.py; here what can happen to any file.

`images`, `tables` and `checkpoints` take a generator and return (suffix, the file's bytes, what was
done to it).
"""

import numpy as np

BOMB = 2**24  # bytes that a bomb unpacks to, at most
HUGE = (0, 1, -1, 255, 2**15 - 1, 2**16 - 1, 2**31 - 1, -(2**31), 2**63 - 1, -(2**63))
ODD_FLOATS = (np.nan, np.inf, -np.inf, 1e38, -1e38, 1e-40, 0.0, 1e9, 352.5)


def pick(rng, items):
    """One of the items; np.random's choice would make an array of them."""
    return items[rng.integers(len(items))]


def flip_bits(content, rng):
    """Flip up to eight bits."""
    content = bytearray(content)
    for place in rng.integers(len(content), size=rng.integers(1, 9)):
        content[place] ^= 1 << rng.integers(8)
    return bytes(content)


def overwrite(content, rng, within=None):
    """Write a number as large, small or odd as its type allows over some bytes."""
    kind = np.dtype(pick(rng, ("i2", "i4", "i8", "f4", "f8"))).newbyteorder(pick(rng, "<>"))
    value = pick(rng, ODD_FLOATS if kind.kind == "f" else HUGE)
    with np.errstate(all="ignore"):
        number = np.array(value).astype(kind).tobytes()
    place = int(rng.integers(min(within or len(content), len(content)))) // 2 * 2
    return content[:place] + number + content[place + len(number) :]


def splice(content, rng):
    """Cut out a piece, double one, or put noise in."""
    a, b = sorted(rng.integers(len(content) + 1, size=2))
    noise = rng.bytes(int(rng.integers(1, 300)))
    return content[:a] + pick(rng, (b"", 2 * content[a:b], noise, bytes(b - a))) + content[b:]


def truncate(content, rng):
    """Cut the end off."""
    return content[: rng.integers(len(content))]


def append(content, rng):
    """Put something behind the end."""
    return content + pick(rng, (b"\n", bytes(512), rng.bytes(100), content))


ANY = (flip_bits, overwrite, splice, truncate, append)
