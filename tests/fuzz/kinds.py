"""What every kind of input has, and ways to damage bytes."""

from pathlib import Path
from random import Random


class Kind:
    """One kind of input. A subclass has a `name`, and makes in `case` one input from `random` alone
    and has it read.

    It returns if what was read is right, lets an error of ours through, and raises an
    AssertionError if something was read that is not what it should be.
    """

    name: str

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def case(self, random: Random) -> None:
        raise NotImplementedError


def damaged(content: bytes, random: Random) -> bytes:
    """`content` with one to three faults, such as a disk, a network or an enemy makes."""
    content = bytearray(content)
    for _ in range(random.choice([1, 1, 1, 2, 3])):
        place, length = random.randrange(len(content) + 1), int(2 ** random.uniform(0, 12))
        part = slice(place, place + length)
        fault = random.randrange(8)
        if fault <= 1 and content:
            content[place % len(content)] ^= 1 << random.randrange(8)
        elif fault == 2:
            content[part] = random.randbytes(len(content[part]))
        elif fault == 3:
            content[part] = bytes(len(content[part]))
        elif fault == 4:
            del content[part]
        elif fault == 5:
            del content[place:]
        elif fault == 6:
            content[place:place] = content[part]
        else:
            number = random.choice([0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1])
            content[place : place + 8] = number.to_bytes(8, "little")[: random.choice([1, 4, 8])]
        if not content:
            break
    return bytes(content)
