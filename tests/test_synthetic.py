"""The synthetic language: what it emits has exactly the entropy that it states."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

from sweep.data import synthetic
from sweep.data.synthetic import END, PAIR, REPEAT, SINGLE, WINDOW, SyntheticLanguage


def sample(language: SyntheticLanguage, documents: int) -> np.ndarray:
    return np.concatenate(list(islice(language.documents(), documents)))


def order_of(language: SyntheticLanguage, past: list[int]) -> list[int]:
    """The order of the vocabulary after `past`, as the module's docstring says it, in plain Python."""
    end = language.end_of_document
    before_last, last = ([end, end] + past)[-2:]
    guesses = [int(language._pair_guess(np.array([before_last]), np.array([last]))[0])]
    for ago in range(1, min(WINDOW, len(past) - 1) + 1):
        if past[-1 - ago] == last:
            guesses.append(past[-ago])
            break
    guesses.append(int(language._single_guess(np.array([last]))[0]))
    return list(dict.fromkeys(guesses + list(range(end))))


@pytest.mark.parametrize("vocab_size", [8, 33, 257])
def test_emitted_tokens_have_the_stated_entropy(vocab_size):
    language = SyntheticLanguage(vocab_size, seed=11)
    losses = -language.log_probabilities(sample(language, 1024))
    assert abs(losses.mean() - language.entropy_rate) < 4 * losses.std() / np.sqrt(len(losses))


def test_ranks_follow_their_distribution_independently():
    """Ranks recovered from the tokens by plain Python: frequencies, and of consecutive pairs."""
    language = SyntheticLanguage(33, seed=2)
    ranks = []
    for document in islice(language.documents(), 60):
        past: list[int] = []
        for token in document.tolist():
            ranks.append(32 if token == 32 else order_of(language, past).index(token))
            past.append(token)
    ranks, expected = np.array(ranks), language.probabilities
    counts = np.bincount(ranks, minlength=33)
    assert ((counts - len(ranks) * expected) ** 2 / (len(ranks) * expected)).sum() < 62.5  # 99.9%, 32 d.o.f.
    first = ranks == 0
    both = np.mean(first[1:] & first[:-1])
    assert abs(both - PAIR**2) < 4 * np.sqrt(PAIR**2 * (1 - PAIR**2) * 2 / len(ranks))


def test_log_probabilities_are_those_of_the_documented_order():
    language = SyntheticLanguage(33, seed=5)
    tokens = sample(language, 12)
    scored, past = language.log_probabilities(tokens), []
    for token, log_probability in zip(tokens.tolist(), scored, strict=True):
        rank = 32 if token == 32 else order_of(language, past).index(token)
        assert log_probability == pytest.approx(np.log(language.probabilities[rank]), rel=1e-12)
        past = [] if token == 32 else [*past, token]


def test_probabilities_of_all_tokens_after_any_past_sum_to_one():
    language = SyntheticLanguage(33, seed=5)
    tokens = sample(language, 4)[:300]
    for length in (0, 1, 2, 40, 299):
        after = [language.log_probabilities(np.append(tokens[:length], token))[-1] for token in range(33)]
        assert np.exp(after).sum() == pytest.approx(1, rel=1e-12)


def test_entropy_rate_is_that_of_the_draws():
    language = SyntheticLanguage(257, seed=0)
    others = 1 - PAIR - REPEAT - SINGLE - END
    weights = (np.arange(253) + 1 + synthetic.ZIPF_SHIFT) ** -synthetic.ZIPF_EXPONENT
    rest = others * weights / weights.sum()
    by_hand = -sum(p * np.log(p) for p in (PAIR, REPEAT, SINGLE, END, *rest))
    assert language.entropy_rate == pytest.approx(by_hand, rel=1e-12)
    assert language.probabilities.sum() == pytest.approx(1, rel=1e-12)


def test_there_is_much_to_learn_between_frequencies_and_entropy():
    language = SyntheticLanguage(257, seed=0)
    tokens = sample(language, 2048)
    frequencies = np.bincount(tokens, minlength=257) / len(tokens)
    unigram = -np.sum(frequencies * np.log(frequencies, where=frequencies > 0, out=np.zeros(257)))
    assert 1.5 < unigram - language.entropy_rate < 2.5
    ranked = np.sort(frequencies[:-1])[::-1]
    slope = np.polyfit(np.log(np.arange(5, 100)), np.log(ranked[5:100]), 1)[0]
    assert -1.6 < slope < -0.7  # Zipfian tokens


def test_documents_are_a_function_of_the_seed_and_a_prefix_of_one_stream():
    few = list(islice(SyntheticLanguage(33, 1).documents(), 5))
    many = list(islice(SyntheticLanguage(33, 1).documents(), synthetic.LANES + 5))
    for one, other in zip(few, many, strict=False):
        np.testing.assert_array_equal(one, other)
    assert not np.array_equal(many[0], many[synthetic.LANES])
    assert not np.array_equal(few[0], next(SyntheticLanguage(33, 2).documents()))


def test_every_document_ends_once():
    documents = list(islice(SyntheticLanguage(33, 1).documents(), 2 * synthetic.LANES))
    for document in documents:
        assert document[-1] == 32 and 32 not in document[:-1]
    lengths = np.array([len(document) for document in documents])
    assert abs(lengths.mean() - 1 / END) < 4 * lengths.std() / np.sqrt(len(lengths))


def test_context_gap_shrinks_with_context():
    language = SyntheticLanguage(257, seed=0)
    tokens = sample(language, 512)
    gaps = [language.context_gap(tokens, seq_len) for seq_len in (32, 64, 128, 256)]
    assert gaps == sorted(gaps, reverse=True) and gaps[-1] > 0
    assert gaps[2] == pytest.approx(4 / 128, rel=0.3)
    with pytest.raises(ValueError, match="no block"):
        language.context_gap(tokens[:32], 32)


def test_held_out_fraction_of_documents():
    held = [synthetic.is_heldout(3, number, 0.1) for number in range(5000)]
    assert abs(sum(held) - 500) < 4 * np.sqrt(5000 * 0.1 * 0.9)


@pytest.mark.parametrize(("vocab_size", "seed"), [(7, 0), (2**16 + 2, 0), (257, -1), (257, 2**64)])
def test_out_of_range(vocab_size, seed):
    with pytest.raises(ValueError, match="a synthetic source needs"):
        SyntheticLanguage(vocab_size, seed)
