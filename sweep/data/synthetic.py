"""A synthetic language whose entropy rate is known exactly, to hold a fitted E against the truth.

At each position the past orders the vocabulary, best guess first, and a rank r is drawn from one
fixed distribution P, independently of everything; the token is the one in place r. The past is all
the tokens of the document so far, and its order of the vocabulary is:

    1. the pair guess: a fixed random function of the last two tokens;
    2. the repeat guess: what followed the last token when it last occurred, if that was in this
       document and at most WINDOW tokens ago;
    3. the single guess: a fixed random function of the last token;
    4. every other token, by its overall frequency rank (which is its id).

A guess equal to an earlier one is passed over. The end-of-document token is drawn with fixed
probability q at any position and belongs to no order.

Entropy rate. Given the past, the map from r to token is one to one, so the token's conditional
entropy is that of r, whatever the past; by the chain rule a document's entropy is the sum of these, and

    entropy rate = H(P) = -sum_r P(r) ln P(r)      nats a token, the end of document included,

exactly: no stationarity and no estimate enters. (A Markov source's rate is that of its innovations:
Cover & Thomas, Elements of Information Theory, section 4.2.)

Why it scales. Guesses are drawn from a Zipf law, so pairs of tokens, of which there are vocab_size**2,
have heavy-tailed frequencies. Each pair's guess is a fact to be seen in the data and kept in the
weights; the mass of pairs too rare to have been seen, or to have found room, falls like a power of
tokens and of parameters (Hutter 2021, arXiv 2102.04074; Michaud et al. 2023, arXiv 2303.13506). Token
frequencies are learned first, then single guesses, then repeats (an induction head) and pairs.

A model that sees blocks cut from the stream lacks the tokens before its block, and so can come no
nearer to the rate than what those would tell; `context_gap` bounds that from above.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import count

import numpy as np

from sweep.data.split import mix

# Assumptions, all five: chosen so that models of 5k to 500k parameters and 1e5 to 1e7 tokens lie on
# the slope between the unigram entropy and the entropy rate.
PAIR, REPEAT, SINGLE = 0.50, 0.12, 0.13  # P(0), P(1), P(2)
END = 1 / 256  # q; documents have 256 tokens on average
WINDOW = 32  # well inside a block of 128, so that few repeats are cut off
ZIPF_EXPONENT, ZIPF_SHIFT = 1.2, 2.0  # frequency of rank r goes as (r + 1 + shift)**-exponent

GUESSES = 3
LANES = 2048  # documents generated side by side
VACANT = np.int64(2**62)  # a guess that is passed over
MIN_VOCABULARY, MAX_VOCABULARY = 8, 2**16 + 1  # assumption: room for the guesses; bounds memory


class SyntheticLanguage:
    """The language over `vocab_size` ids, the last of which ends a document, with guesses from `seed`.

    Attributes:
        end_of_document: its id, vocab_size - 1.
        probabilities: P, float64[vocab_size]: of each rank, and last of the end of a document.
        entropy_rate: nats a token, exact.
    Raises:
        ValueError: vocab_size out of range, or a seed outside 0 to 2**64 - 1.
    """

    def __init__(self, vocab_size: int, seed: int) -> None:
        if not MIN_VOCABULARY <= vocab_size <= MAX_VOCABULARY:
            raise ValueError(
                f"a synthetic source needs vocab_size from {MIN_VOCABULARY} to {MAX_VOCABULARY}, "
                f"not {vocab_size}. Nothing was launched."
            )
        if not 0 <= seed < 2**64:
            raise ValueError(
                f"a synthetic source needs a seed from 0 to 2**64 - 1, not {seed}. Nothing was launched."
            )
        self.seed = seed
        self.end_of_document = vocab_size - 1
        others = (1 - PAIR - REPEAT - SINGLE - END) * zipf(self.end_of_document - GUESSES)
        self.probabilities = np.concatenate([[PAIR, REPEAT, SINGLE], others, [END]])
        self.entropy_rate = float(-np.sum(self.probabilities * np.log(self.probabilities)))
        self._rank_thresholds = thresholds(self.probabilities)
        self._guess_thresholds = thresholds(zipf(self.end_of_document))

    def documents(self) -> Iterator[np.ndarray]:
        """Endless documents, int64[token], each with its end-of-document token.

        The same on every call; the first n do not depend on how many are taken.
        """
        for batch in count():
            yield from self._batch(batch)

    def _batch(self, batch: int) -> list[np.ndarray]:
        """LANES documents, written in step, a token to each that has not ended."""
        noise = np.random.Philox(key=np.array([self.seed, batch], dtype=np.uint64))
        followed = np.full((LANES, self.end_of_document + 1), VACANT)
        followed_at = np.full((LANES, self.end_of_document + 1), -WINDOW, dtype=np.int32)
        lanes = np.arange(LANES)
        before_last = last = np.full(LANES, self.end_of_document)
        written: list[tuple[np.ndarray, np.ndarray]] = []
        for position in count():
            if not len(lanes):
                break
            recent = position - followed_at[lanes, last] <= WINDOW
            repeated = np.where(recent, followed[lanes, last], VACANT)
            ranks = np.searchsorted(self._rank_thresholds, noise.random_raw(len(lanes)), side="right")
            guesses = self._guesses(before_last, last, repeated)
            tokens = self._tokens_at(ranks, guesses)
            written.append((lanes, tokens))
            followed[lanes, last] = tokens
            followed_at[lanes, last] = position
            goes_on = tokens != self.end_of_document
            lanes, before_last, last = lanes[goes_on], last[goes_on], tokens[goes_on]
        lane_of = np.concatenate([lanes for lanes, _ in written])
        token_of = np.concatenate([tokens for _, tokens in written])
        by_lane = token_of[np.argsort(lane_of, kind="stable")]
        return np.split(by_lane, np.flatnonzero(by_lane == self.end_of_document)[:-1] + 1)

    def _guesses(self, before_last: np.ndarray, last: np.ndarray, repeated: np.ndarray) -> np.ndarray:
        """The guesses in order, int64[3, position]; VACANT where one is missing or equals an earlier one."""
        pair, repeat, single = self._pair_guess(before_last, last), repeated, self._single_guess(last)
        repeat = np.where(repeat == pair, VACANT, repeat)
        single = np.where((single == pair) | (single == repeat), VACANT, single)
        return np.stack([pair, repeat, single])

    def _tokens_at(self, ranks: np.ndarray, guesses: np.ndarray) -> np.ndarray:
        """The tokens in places `ranks` of the orders that begin with `guesses`: int64[position]."""
        present = guesses != VACANT
        places = np.where(present, np.cumsum(present, axis=0) - 1, -1)
        tokens = ranks - present.sum(axis=0)
        for guess in np.sort(guesses, axis=0):  # ascending, each guess below pushes the others up by one
            tokens += tokens >= guess
        for guess, place in zip(guesses, places, strict=True):
            tokens = np.where(ranks == place, guess, tokens)
        return np.where(ranks == self.end_of_document, self.end_of_document, tokens)

    def _pair_guess(self, before_last: np.ndarray, last: np.ndarray) -> np.ndarray:
        return self._guess(1 + before_last * (self.end_of_document + 1) + last)

    def _single_guess(self, last: np.ndarray) -> np.ndarray:
        return self._guess(-1 - last)

    def _guess(self, contexts: np.ndarray) -> np.ndarray:
        """A token for each context number, drawn from the Zipf law by a hash of it and the seed."""
        salt = mix(np.array([self.seed], dtype=np.uint64) + np.uint64(1))
        noise = mix(mix(contexts.astype(np.uint64)) ^ salt)
        return np.searchsorted(self._guess_thresholds, noise, side="right")

    def log_probabilities(self, tokens: np.ndarray) -> np.ndarray:
        """ln p(token | its past) under the language itself: int[token] -> float64[token], nats.

        `tokens` begin at the start of a document. Minus their mean over a long sample is the entropy
        rate, within its standard error.
        """
        tokens = np.asarray(tokens, dtype=np.int64)
        end = self.end_of_document
        last = np.concatenate([[end], tokens[:-1]])
        before_last = np.where(last == end, end, np.concatenate([[end], last[:-1]]))
        guesses = self._guesses(before_last, last, self._repeated(tokens))

        present = guesses != VACANT
        places = np.cumsum(present, axis=0) - 1
        ranks = tokens + np.sum(present & (guesses > tokens), axis=0)
        for guess, place in zip(guesses, places, strict=True):
            ranks = np.where(guess == tokens, place, ranks)
        return np.log(self.probabilities[np.where(tokens == end, end, ranks)])

    def _repeated(self, tokens: np.ndarray) -> np.ndarray:
        """For each position the repeat guess: int64[token], VACANT where the last token is new."""
        document = np.cumsum(tokens == self.end_of_document) - (tokens == self.end_of_document)
        same = document * (self.end_of_document + 1) + tokens
        order = np.argsort(same, kind="stable")
        again = (same[order[1:]] == same[order[:-1]]) & (order[1:] - order[:-1] <= WINDOW)
        following = np.append(tokens[1:], VACANT)
        repeated = np.full(len(tokens) + 1, VACANT)
        repeated[order[1:][again] + 1] = following[order[:-1][again]]
        return repeated[:-1]

    def context_gap(self, tokens: np.ndarray, seq_len: int) -> float:
        """An upper bound, nats a token, on how far above the entropy rate the best loss is for a model
        that sees nothing before its block of `seq_len` labels.

        It is the excess loss, on blocks cut from `tokens` (which begin a document), of a predictor
        that knows the language but takes each block for the beginning of a document: about 4/seq_len
        at vocabularies of 257 to 1,025.
        """
        blocks = (len(tokens) - 1) // seq_len
        if blocks < 1:
            raise ValueError(f"{len(tokens)} tokens hold no block of seq_len={seq_len} and its label")
        full = self.log_probabilities(tokens)[1 : blocks * seq_len + 1]
        starts = np.arange(blocks)[:, None] * seq_len
        cut = tokens[starts + np.arange(seq_len + 1)]
        apart = np.concatenate([np.full((blocks, 1), self.end_of_document), cut], axis=1)
        alone = self.log_probabilities(apart.ravel()).reshape(apart.shape)[:, 2:]
        return float(full.mean() - alone.mean())


def zipf(size: int) -> np.ndarray:
    """Zipf-Mandelbrot probabilities of ranks 0 to size - 1: float64[size]."""
    weights = (np.arange(size) + 1 + ZIPF_SHIFT) ** -ZIPF_EXPONENT
    return weights / weights.sum()


def thresholds(probabilities: np.ndarray) -> np.ndarray:
    """uint64[outcome - 1] such that a uniform uint64 lies at or above k of them with the probability
    of outcomes k and later, to 2**-53."""
    return (np.cumsum(probabilities)[:-1] * 2.0**64).astype(np.uint64)


def is_heldout(seed: int, number: int, fraction: float) -> bool:
    """Whether document `number` is held out. By number, not content: copies of short documents are
    independent draws here, and dropping or gathering them would change the language."""
    noise = hashlib.blake2b(f"{seed} {number}".encode(), digest_size=8).digest()
    return int.from_bytes(noise, "big") / 2**64 < fraction
