"""The split: a document's side is its own, copies are dropped, near-copies stay together."""

from __future__ import annotations

import numpy as np
import pytest

from sweep.data import split
from sweep.data.split import BANDS, HASHES, ROWS, SHINGLE_BYTES, Fate, Splitter, band_keys, minhash

HEADS, TAILS = ("al", "be", "ga", "de", "ep", "ze"), ("pha", "ta", "mma", "lta", "silon", "ro")
WORDS = [head + tail for head in HEADS for tail in TAILS]


def prose(seed: int, words: int = 400) -> bytes:
    rng = np.random.default_rng(seed)
    chosen = zip(rng.integers(36, size=words), rng.integers(99, size=words), strict=True)
    return " ".join(f"{WORDS[word]}{number}" for word, number in chosen).encode()


def shingles(text: bytes) -> set[bytes]:
    return {text[i : i + SHINGLE_BYTES] for i in range(len(text) - SHINGLE_BYTES + 1)}


def jaccard(one: bytes, other: bytes) -> float:
    return len(shingles(one) & shingles(other)) / len(shingles(one) | shingles(other))


def overlapping(seed: int, shared: int, own: int) -> tuple[bytes, bytes]:
    """Two documents that begin with the same `shared` words and go on with `own` of their own."""
    common = prose(seed, shared)
    return common + b" " + prose(seed + 10**6, own), common + b" " + prose(seed + 2 * 10**6, own)


def test_side_depends_on_the_document_alone():
    texts = [prose(seed) for seed in range(300)]
    forward, backward = Splitter(0.3), Splitter(0.3)
    sides = [forward.fate(text) for text in texts]
    assert sides == [backward.fate(text) for text in reversed(texts)][::-1]
    assert abs(sides.count(Fate.HELDOUT) - 90) < 4 * np.sqrt(300 * 0.3 * 0.7)


def test_raising_the_fraction_only_adds_documents():
    texts = [prose(seed) for seed in range(200)]
    small, large = Splitter(0.1), Splitter(0.4)
    for text in texts:
        if small.fate(text) is Fate.HELDOUT:
            assert large.fate(text) is Fate.HELDOUT


def test_copies_and_blanks_are_counted_out():
    splitter = Splitter(0.5)
    fates = [splitter.fate(text) for text in (b"", b" \n\t", prose(1), prose(1), b"tiny", b"tiny")]
    assert fates[:2] == [Fate.EMPTY] * 2 and fates[3] is fates[5] is Fate.DUPLICATE
    assert splitter.counts["empty"] == 2 and splitter.counts["duplicates"] == 2
    assert splitter.counts["near_copies"] == splitter.counts["near_both_sides"] == 0


def test_near_copies_never_cross():
    followed = 0
    for seed in range(200):
        splitter = Splitter(0.5)
        original = prose(seed)
        words = original.split()
        words[200] = b"edited"
        edited = b" ".join(words)
        assert splitter.fate(original) is splitter.fate(edited)
        followed += splitter.counts["near_copies"]
    assert followed == 200


def test_what_resembles_both_sides_is_dropped():
    dropped = 0
    for seed in range(60):
        common, one, other = prose(seed, 300), prose(seed + 10**6, 100), prose(seed + 2 * 10**6, 100)
        splitter = Splitter(0.5)
        sides = splitter.fate(common + b" " + one), splitter.fate(common + b" " + other)
        third = splitter.fate(common)
        if sides[0] is sides[1]:
            assert third is sides[0] or splitter.counts["near_copies"] == 0
        elif third is Fate.BETWEEN:
            dropped += 1
            assert splitter.counts["near_both_sides"] == 1
    assert dropped > 0


def test_agreement_of_signatures_estimates_jaccard():
    for shared, own in ((380, 20), (300, 100), (200, 200), (20, 10)):
        pairs = [overlapping(seed, shared, own) for seed in range(60)]
        agreement = np.mean([np.mean(minhash(one) == minhash(other)) for one, other in pairs])
        truth = np.mean([jaccard(one, other) for one, other in pairs])
        assert abs(agreement - truth) < 4 * np.sqrt(truth * (1 - truth) / HASHES / 60) + 0.01


@pytest.mark.parametrize(("shared", "own"), [(380, 20), (330, 70), (280, 120), (200, 200)])
def test_detection_follows_the_stated_curve(shared, own):
    pairs = [overlapping(seed, shared, own) for seed in range(150)]
    found = np.mean([not set(band_keys(one)).isdisjoint(band_keys(other)) for one, other in pairs])
    stated = np.mean([1 - (1 - jaccard(one, other) ** ROWS) ** BANDS for one, other in pairs])
    assert abs(found - stated) < 4 * np.sqrt(stated * (1 - stated) / 150) + 0.02


def test_detection_table_in_the_docstring():
    similarity = np.array([0.1, 0.3, 0.5, 0.6, 0.7, 0.8])
    stated = np.array([3e-5, 0.02, 0.40, 0.78, 0.981, 0.9999])
    np.testing.assert_allclose(1 - (1 - similarity**ROWS) ** BANDS, stated, rtol=0.2)
    assert 1 - (1 - 0.7**ROWS) ** BANDS > 0.98


def test_unrelated_documents_are_not_near():
    seen: set[int] = set()
    for seed in range(300):
        keys = set(band_keys(prose(seed)))
        assert seen.isdisjoint(keys)
        seen |= keys


def test_signature_is_that_of_the_set_of_shingles(monkeypatch):
    text = prose(3)
    whole = minhash(text)
    doubled = minhash(text + text)
    assert np.mean(whole == doubled) > 0.9  # the seam adds 31 shingles
    monkeypatch.setattr(split, "CHUNK_BYTES", 100)
    np.testing.assert_array_equal(minhash(text), whole)


def test_less_than_a_shingle_has_no_signature_and_one_shingle_has():
    assert minhash(b"x" * (SHINGLE_BYTES - 1)) is None and band_keys(b"short") == []
    signature = minhash(b"x" * SHINGLE_BYTES)
    assert len(set(signature.tolist())) == 1
    np.testing.assert_array_equal(signature, minhash(b"x" * 100))


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 2, float("nan")])
def test_fraction_out_of_range(fraction):
    with pytest.raises(ValueError, match="heldout_fraction"):
        Splitter(fraction)
