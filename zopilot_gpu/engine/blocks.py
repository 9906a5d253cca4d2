"""Who owns which block of the KV pool. Knows counts, hashes and order; no tensors.

                    allocate                      free, sealed
        ┌──────┐ ─────────────▶ ┌───────┐ ──────────────────────▶ ┌────────┐
        │ free │                │ owned │                         │ cached │
        └──────┘ ◀───────────── └───────┘ ◀────────────────────── └────────┘
            ▲    free, not sealed               found by a prefix      │
            └────────────────────────────────────────────────────────┘
                         evicted: the one unused longest first

A block is owned by one or more sequences (`_owners` counts them). A full block is *sealed* with the SHA-256 of all tokens from
the start of its sequence to its own end, salted by the sequence's owner: sequences with the same beginning may share it.
Every block is in exactly one of the three places: free + cached + owned = all.
"""

import hashlib
from array import array
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


class OutOfBlocks(Exception):
    """The pool has too few blocks free or cached."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """The content of one full block. The digest covers the salt and all tokens up to its end; `tokens` are its own."""

    digest: bytes
    tokens: tuple[int, ...]  # compared on a hit: a hash alone is not trusted


class BlockPool:
    """`num_blocks` blocks of `block_size` tokens.

    Args:
        num_blocks: B.
        block_size: N, tokens a block.
        share_prefixes: whether full blocks are kept for other sequences.
    """

    def __init__(self, num_blocks: int, block_size: int, *, share_prefixes: bool = True) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._share_prefixes = share_prefixes
        self.reset()

    def reset(self) -> None:
        """Makes every block free; nobody may own one any more."""
        self._free = deque(range(self.num_blocks))
        self._cached: OrderedDict[int, None] = OrderedDict()  # unused longest first
        self._owners = [0] * self.num_blocks
        self._seals: dict[int, Chunk] = {}
        self._by_digest: dict[bytes, int] = {}

    @property
    def num_available(self) -> int:
        """Blocks that `allocate` could give: free and cached."""
        return len(self._free) + len(self._cached)

    @property
    def num_cached(self) -> int:
        """Blocks that nobody owns and a prefix may find."""
        return len(self._cached)

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold `num_tokens`."""
        return -(-num_tokens // self.block_size)

    def allocate(self, count: int) -> list[int]:
        """`count` blocks for one owner.

        Raises:
            OutOfBlocks: there are not that many; nothing was taken.
        """
        if count > self.num_available:
            raise OutOfBlocks
        blocks = [self._free.popleft() if self._free else self._evict() for _ in range(count)]
        for block in blocks:
            self._owners[block] = 1
        return blocks

    def free(self, blocks: Iterable[int]) -> None:
        """Gives up one owner's hold on `blocks`; the last of a sequence is evicted before its first."""
        for block in reversed(list(blocks)):
            self._owners[block] -= 1
            if self._owners[block] == 0:
                if block in self._seals:
                    self._cached[block] = None
                else:
                    self._free.append(block)

    def share_prefix(self, chunks: Iterable[Chunk]) -> list[int]:
        """The blocks that hold `chunks`, as far as all from the first on are known; now owned by the caller too."""
        blocks: list[int] = []
        for chunk in chunks:
            block = self._by_digest.get(chunk.digest)
            if block is None or self._seals[block].tokens != chunk.tokens:
                break
            self._cached.pop(block, None)
            self._owners[block] += 1
            blocks.append(block)
        return blocks

    def seal(self, block: int, chunk: Chunk) -> None:
        """Marks a full block, whose content is `chunk`, as shareable; of two with the same content the first stays so."""
        if self._share_prefixes and block not in self._seals and chunk.digest not in self._by_digest:
            self._seals[block] = chunk
            self._by_digest[chunk.digest] = block

    def check(self, owned: Iterable[Sequence[int]]) -> None:
        """Proves the map while nothing runs: `owned` are the block lists of all live sequences.

        Raises:
            RuntimeError: a block is in no place or in two.
        """
        owners = [0] * self.num_blocks
        for blocks in owned:
            for block in blocks:
                owners[block] += 1
        places = [*self._free, *self._cached, *(block for block, count in enumerate(owners) if count)]
        if owners != self._owners or sorted(places) != list(range(self.num_blocks)):
            raise RuntimeError(f"block map broken: {len(self._free)} free, {len(self._cached)} cached, {sum(owners)} holds")
        if set(self._by_digest.values()) != set(self._seals) or not set(self._cached) <= set(self._seals):
            raise RuntimeError("block map broken: seals and hashes differ")

    def _evict(self) -> int:
        block, _ = self._cached.popitem(last=False)
        del self._by_digest[self._seals.pop(block).digest]
        return block


def chunks_of(tokens: Sequence[int], size: int, salt: bytes, known: Sequence[Chunk] = ()) -> list[Chunk]:
    """The full chunks of `tokens`, of which the first ones are `known` already."""
    chunks = list(known)
    for start in range(len(chunks) * size, len(tokens) - size + 1, size):
        content = tuple(tokens[start : start + size])
        before = chunks[-1].digest if chunks else hashlib.sha256(salt).digest()
        chunks.append(Chunk(hashlib.sha256(before + array("I", content).tobytes()).digest(), content))
    return chunks
