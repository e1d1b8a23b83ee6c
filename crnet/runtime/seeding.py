"""Named seeds: every random draw of the project starts from words and numbers that are recorded."""

import hashlib

from crnet.runtime.files import canonical


def derive(*parts: str | int) -> int:
    """A seed in [0, 2**63), a pure function of its named parts, e.g. ``derive("episodes", "pascal5i", fold, 0)``.

    Hashing keeps neighbouring parts (fold 0 and fold 1) from giving related streams, which adding numbers would not.
    """
    digest = hashlib.sha256(canonical(list(parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
