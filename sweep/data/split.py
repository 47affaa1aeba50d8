"""Which side of the train/held-out split a document belongs to.

The side is a hash of the document, so it depends on no seed and moves with no other document; but
an exact copy is dropped, and a near-copy follows the side of the document it resembles, since a
held-out text that was also trained on measures memory (Lee et al. 2022, arXiv 2107.06499).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from enum import Enum

import numpy as np

SHINGLE_BYTES = 32  # a power of two; about the 5 words of Lee et al. 2022, section 4.2
BANDS, ROWS = 32, 6  # assumption: see Splitter for what they detect
HASHES = BANDS * ROWS
CHUNK_BYTES = 1 << 20  # shingles hashed at a time, which bounds the memory a huge document takes

EMPTY_BIN = np.uint64(2**64 - 1)
MULTIPLIER = 0x9E3779B97F4A7C15  # odd, 2**64 / golden ratio (Knuth, TAOCP 3, section 6.4)


class Fate(Enum):
    """What becomes of a document; the value is the name it is counted under."""

    TRAIN = "train_documents"
    HELDOUT = "heldout_documents"
    EMPTY = "empty"
    DUPLICATE = "duplicates"
    BETWEEN = "near_both_sides"


class Splitter:
    """Gives documents, one after another, their fate. One pass; remembers hashes, never text.

    Two documents with Jaccard similarity s between their sets of 32-byte shingles share a band of
    6 MinHash values with probability s**6, and one band or more of the 32 with probability
    1 - (1 - s**6)**32 (Leskovec, Rajaraman & Ullman, Mining of Massive Datasets, section 3.4):

        s            0.1    0.3    0.5    0.6    0.7    0.8     0.9
        detected     3e-5   0.02   0.40   0.78   0.981  0.9999  1 - 4e-11

    So near-copies are documents of similarity 0.7 and more, found with probability 0.98 and more.
    Two things it does not see: a short document quoted inside a much longer one, and similarity of
    documents shorter than 32 bytes, which only exact equality relates.

    A document that resembles earlier ones on one side follows them there; one that resembles both
    sides is dropped. Only there, and there rarely, does the order of documents matter.

    Memory: about 2.5 kB a document (32 bands and a digest in Python sets).

    Attributes:
        counts: documents by fate, plus "near_copies" (kept, on the side of what they resemble).

    Raises:
        ValueError: heldout_fraction not between 0 and 1.
    """

    def __init__(self, heldout_fraction: float) -> None:
        if not 0 < heldout_fraction < 1:
            raise ValueError(f"heldout_fraction must lie between 0 and 1, not {heldout_fraction}")
        self.heldout_fraction = heldout_fraction
        self.counts = Counter({fate.value: 0 for fate in Fate} | {"near_copies": 0})
        self._digests: set[bytes] = set()
        self._bands: dict[Fate, set[int]] = {Fate.TRAIN: set(), Fate.HELDOUT: set()}

    def fate(self, text: bytes) -> Fate:
        """The fate of the next document, given those before it."""
        fate = self._decide(text)
        self.counts[fate.value] += 1
        return fate

    def _decide(self, text: bytes) -> Fate:
        if not text.strip():
            return Fate.EMPTY
        digest = document_digest(text)
        if digest in self._digests:
            return Fate.DUPLICATE
        self._digests.add(digest)

        bands = band_keys(text)
        resembled = [side for side, seen in self._bands.items() if not seen.isdisjoint(bands)]
        if len(resembled) == 2:
            return Fate.BETWEEN
        if resembled:
            self.counts["near_copies"] += 1
        side = resembled[0] if resembled else hashed_side(digest, self.heldout_fraction)
        self._bands[side].update(bands)
        return side


def document_digest(text: bytes) -> bytes:
    """16 bytes of BLAKE2b: its first 8 decide the side, its last 8 the order of held-out documents."""
    return hashlib.blake2b(text, digest_size=16).digest()


def hashed_side(digest: bytes, heldout_fraction: float) -> Fate:
    """The side of a document that resembles no earlier one."""
    uniform = int.from_bytes(digest[:8], "big") / 2**64
    return Fate.HELDOUT if uniform < heldout_fraction else Fate.TRAIN


def band_keys(text: bytes) -> list[int]:
    """One 64-bit key for each band of the MinHash signature; none for less than a shingle."""
    signature = minhash(text)
    if signature is None:
        return []
    rows = signature.reshape(BANDS, ROWS)
    keys = np.arange(BANDS, dtype=np.uint64)
    for row in range(ROWS):
        keys = mix(keys * np.uint64(MULTIPLIER) + rows[:, row])
    return keys.tolist()


def minhash(text: bytes) -> np.ndarray | None:
    """MinHash signature of the set of 32-byte shingles of `text`: uint64[HASHES].

    One permutation hashing: each shingle is hashed once, the hash's range is cut into HASHES bins,
    and the smallest hash in each bin is one coordinate (Li, Owen & Zhang 2012, arXiv 1208.1259). An
    empty bin borrows from bins tried in an order that is its own and the same for every document,
    so that P(two coordinates agree) stays the Jaccard similarity (Shrivastava 2017, arXiv 1703.04664).
    """
    if len(text) < SHINGLE_BYTES:
        return None
    signature = np.full(HASHES, EMPTY_BIN, dtype=np.uint64)
    data = np.frombuffer(text, dtype=np.uint8)
    for start in range(0, len(data) - SHINGLE_BYTES + 1, CHUNK_BYTES):
        hashes = shingle_hashes(data[start : start + CHUNK_BYTES + SHINGLE_BYTES - 1])
        bins = (hashes >> np.uint64(32)) * np.uint64(HASHES) >> np.uint64(32)
        np.minimum.at(signature, bins.astype(np.intp), hashes)

    empty = np.flatnonzero(signature == EMPTY_BIN)
    filled = signature.copy()
    attempt = 0
    while len(empty):
        attempt += 1
        donors = mix(empty.astype(np.uint64) + np.uint64(attempt * HASHES)) % np.uint64(HASHES)
        filled[empty] = signature[donors.astype(np.intp)]
        empty = empty[filled[empty] == EMPTY_BIN]
    return filled


def shingle_hashes(data: np.ndarray) -> np.ndarray:
    """Hash of every run of 32 bytes: uint8[n] -> uint64[n - 31].

    A polynomial in MULTIPLIER modulo 2**64, built by doubling (a run of 2w bytes is two runs of w),
    then mixed, since a polynomial's low bits depend on low bits alone.
    """
    hashes = data.astype(np.uint64) + np.uint64(1)
    width = 1
    while width < SHINGLE_BYTES:
        power = np.uint64(pow(MULTIPLIER, width, 2**64))
        hashes = hashes[:-width] * power + hashes[width:]
        width *= 2
    return mix(hashes)


def mix(values: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser, a bijection of uint64 (Steele, Lea & Flood 2014, OOPSLA)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
