"""A row's own randomness: the same whatever batch, rank or resumed run it stands in."""

from hashlib import blake2b


def row_seed(*parts: int | str | None) -> int:
    """A 63-bit seed from, say, (run seed, step, problem id)."""
    digest = blake2b("\0".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
