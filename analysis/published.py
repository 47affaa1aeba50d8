"""Laws that others published, as data: constants, where they stand, and what they are about.

Losses are nats a token of the paper's own tokenizer and corpus: between laws, and with yours, only
their differences and their optima can be compared.
"""

from __future__ import annotations

import math

from analysis.known import Known, Optima, PowerLoss, Repeats, Surface
from analysis.values import PublishedAllocation

_KAPLAN = "Kaplan et al. 2020 (arXiv 2001.08361)"
_HOFFMANN = "Hoffmann et al. 2022 (arXiv 2203.15556)"
_MASSIVE = "MassiveText, SentencePiece of 32,000 entries, smoothed training loss"
_TOTAL = "all parameters, embeddings included"

PF_DAY = 1e15 * 24 * 3600
"""FLOPs in a PF-day (Kaplan et al. 2020, section 1.3)."""

CRITICAL = 2.0
"""C / C_min for training at the critical batch size, where B = B_crit (Kaplan et al. 2020, equation 5.5).
Hoffmann et al. 2022, appendix D.4, reads Kaplan's law this way: N = 4.68e9 at C = 1e21."""


def _surface(surface: Surface, **about) -> Known:
    """`about` holds the other fields of Known. A law with k = 1 calls its exponents alpha and beta."""
    names = {"a": "alpha", "b": "beta"} if surface.k == 1 else {"a": "a", "b": "b", "k": "k"}
    constants = {name: getattr(surface, name) for name in ("E", "A", "B")}
    constants |= {shown: getattr(surface, name) for name, shown in names.items()}
    if surface.repeats:
        constants |= {"R_D*": surface.repeats.tokens, "R_N*": surface.repeats.params}
    return Known(
        loss=surface.loss, irreducible=surface.E, repeats=surface.repeats, constants=constants, **about
    )


_SEPARABLE = "L(N, D) = E + A/N^alpha + B/D^beta"
_HOFFMANN_RUNS = {"params": (70e6, 16e9), "tokens": (5e9, 500e9)}  # abstract
_BOTH_OPTIMA = "N_opt ∝ C^a, D_opt ∝ C^b, through the paper's own table of optimal runs"

LAWS: dict[str, Known] = {
    law.name: law
    for law in (
        _surface(
            Surface(E=1.8172, A=482.01, B=2085.43, a=0.3478, b=0.3658),
            name="besiroglu",
            equation=_SEPARABLE,
            source="Besiroglu et al. 2024 (arXiv 2404.10102), equation 3 and table 1: approach 3 fitted anew "
            "to 240 of Hoffmann et al.'s runs",
            counts=_TOTAL,
            corpus=_MASSIVE,
            interval="none for this answer: the paper gives standard errors (A 124.58, B 1293.23, E 0.03, "
            "alpha 0.02, beta 0.02) without their covariance, and A, B and the exponents vary together",
            # of the 240 runs as the authors published them (epoch-research/analyzing-chinchilla)
            fitted={"params": (57e6, 16.2e9), "tokens": (0.82e9, 318e9), "flops": (1.4e18, 1.3e22)},
        ),
        Known(
            name="hoffmann-1",
            equation=_BOTH_OPTIMA,
            source=f"{_HOFFMANN}, table 3; exponents: table 2, approach 1 (minimum over training curves)",
            counts=_TOTAL,
            corpus=_MASSIVE,
            interval="for the exponents only (table 2, 10th and 90th percentile over resamples): a 0.488 to "
            "0.502, b 0.501 to 0.512",
            constants={"a": 0.50, "b": 0.50},
            optima=Optima(
                points=(
                    (1.92e19, 400e6, 8.0e9),
                    (1.21e20, 1e9, 20.2e9),
                    (1.23e22, 10e9, 205.1e9),
                    (5.76e23, 67e9, 1.5e12),
                    (3.85e24, 175e9, 3.7e12),
                    (9.90e24, 280e9, 5.9e12),
                    (3.43e25, 520e9, 11.0e12),
                    (1.27e26, 1e12, 21.2e12),
                    (1.30e28, 10e12, 216.2e12),
                ),
                a=0.50,
                b=0.50,
            ),
            fitted=_HOFFMANN_RUNS,
        ),
        Known(
            name="hoffmann-2",
            equation=_BOTH_OPTIMA,
            source=f"{_HOFFMANN}, table A3 and, at Gopher's 5.76e23 FLOPs, figure 3; exponents: table 2, "
            "approach 2 (isoFLOP profiles)",
            counts=_TOTAL,
            corpus=_MASSIVE,
            interval="for the exponents only (table 2, 10th and 90th percentile over resamples): a 0.462 to "
            "0.534, b 0.483 to 0.529",
            constants={"a": 0.49, "b": 0.51},
            optima=Optima(
                points=(
                    (1.84e19, 400e6, 7.7e9),
                    (1.20e20, 1e9, 20.0e9),
                    (1.32e22, 10e9, 219.5e9),
                    (5.76e23, 63e9, 1.4e12),
                    (6.88e23, 67e9, 1.7e12),
                    (4.54e24, 175e9, 4.3e12),
                    (1.18e25, 280e9, 7.1e12),
                    (4.19e25, 520e9, 13.4e12),
                    (1.59e26, 1e12, 26.5e12),
                    (1.75e28, 10e12, 292.0e12),
                ),
                a=0.49,
                b=0.51,
            ),
            fitted={**_HOFFMANN_RUNS, "flops": (6e18, 3e21)},  # section 3.2
        ),
        _surface(
            Surface(
                E=math.exp(0.5267228),
                A=math.exp(6.0073404),
                B=math.exp(6.0179186),
                a=0.33917084,
                b=0.2849083,
            ),
            name="hoffmann-3",
            equation=_SEPARABLE,
            source=f"{_HOFFMANN}, equation 10 before rounding, from the arXiv source (also in "
            "epoch-research/analyzing-chinchilla)",
            counts=_TOTAL,
            corpus=_MASSIVE,
            interval="none that holds: table 2's for a (0.454 to 0.455) is too narrow by far (Besiroglu et "
            "al. 2024, arXiv 2404.10102), whose refit is law=besiroglu",
            fitted=_HOFFMANN_RUNS,
            notes=("Besiroglu et al. 2024 could not reproduce this fit from the paper's own runs",),
        ),
        _surface(
            Surface(E=1.69, A=406.4, B=410.7, a=0.34, b=0.28),
            name="hoffmann-3-rounded",
            equation=_SEPARABLE,
            source=f"{_HOFFMANN}, equation 10 as printed",
            counts=_TOTAL,
            corpus=_MASSIVE,
            interval="none: as for hoffmann-3",
            fitted=_HOFFMANN_RUNS,
            notes=(
                "two digits of the exponents move the optimum: at Gopher's 5.76e23 FLOPs it gives 32B, the "
                "paper (and law=hoffmann-3) 40B",
            ),
        ),
        _surface(
            Surface(E=1.69, A=406.4, B=410.7, a=0.336, b=0.283),
            name="sardana",
            equation=_SEPARABLE,
            source=f"Sardana et al. 2024 (arXiv 2401.00448): approach 3 of {_HOFFMANN} to three digits, with "
            "which its inference-aware examples come out",
            counts=_TOTAL,
            corpus=_MASSIVE,
            interval="none: as for hoffmann-3",
            fitted=_HOFFMANN_RUNS,
            notes=("Besiroglu et al. 2024 could not reproduce this fit from the paper's own runs",),
        ),
        _surface(
            Surface(
                E=math.exp(0.6254804),
                A=math.exp(6.255414),
                B=math.exp(7.3049974),
                a=0.3526596,
                b=0.3526596,
                repeats=Repeats(tokens=15.387756, params=5.309743),
            ),
            name="muennighoff",
            equation="L(N, D, U) = E + A/N'^alpha + B/D'^beta, D' = U + U·R_D*·(1 - exp(-(D/U - 1)/R_D*)), "
            "N' likewise from the N that U tokens feed",
            source="Muennighoff et al. 2023 (arXiv 2305.16264), equations 5 and 6, appendix A; all digits: "
            "huggingface/datablations",
            counts="all parameters, embeddings included; GPT-2 architecture",
            corpus="C4, GPT-2's tokenizer of 50,257 entries, held-out loss",
            interval="none: the paper gives no standard errors",
            fitted={"params": (10e6, 9e9), "tokens": (None, 900e9)},  # abstract and section 1
            notes=("a loss that rises again after many epochs (section 6: 44) is not in the law",),
        ),
        Known(
            name="kaplan",
            equation="N_opt = 1.3e9·C_min^0.73, D_opt = 2e10·C_min^0.27, L = (3.1e8/C_min)^0.050, C_min in "
            "PF-days; C = 2·C_min",
            source=f"{_KAPLAN}, tables 5 and 6 and equation 1.3",
            counts="non-embedding parameters",
            corpus="WebText2, GPT-2's tokenizer of 50,257 entries, held-out loss",
            interval="none: the paper gives none",
            constants={"N_e": 1.3e9, "p_N": 0.73, "D_e": 2e10, "p_D": 0.27, "C_c": 3.1e8, "alpha_C": 0.050},
            optima=Optima(points=((CRITICAL * PF_DAY, 1.3e9, 2e10),), a=0.73, b=0.27),
            limits={"flops": PowerLoss(3.1e8 * CRITICAL * PF_DAY, 0.050)},
            fitted={"params": (768, 1.5e9), "tokens": (22e6, 23e9)},  # section 1.1
            notes=(
                "assumes a batch of critical size, which costs C = 2·C_min (equation 5.5)",
                "later work finds that far more tokens are needed: Hoffmann et al. 2022; Porian et al. 2024 "
                "(arXiv 2406.19146) say why",
            ),
        ),
        _surface(
            Surface(
                E=0.0,
                A=6.4e13 ** (0.076 / 0.103),
                B=1.8e13,
                a=0.076 / 0.103,
                b=1.0,
                k=0.103,
            ),
            name="kaplan-nd",
            equation="L(N, D) = [(N_c/N)^(alpha_N/alpha_D) + D_c/D]^alpha_D, N_c = 6.4e13, D_c = 1.8e13, "
            "alpha_N = 0.076, alpha_D = 0.103; as E + (A/N^a + B/D^b)^k",
            source=f"{_KAPLAN}, equation 1.5 and table 2; N alone: equation 1.1; D alone: equation 1.2",
            counts="non-embedding parameters",
            corpus="WebText2, GPT-2's tokenizer of 50,257 entries, held-out loss",
            interval="none: the paper gives none",
            one_pass=False,
            limits={"params": PowerLoss(8.8e13, 0.076), "tokens": PowerLoss(5.4e13, 0.095)},
            fitted={"params": (768, 1.5e9), "tokens": (22e6, 23e9)},
            notes=("D is the size of a data set that is trained on until the loss stops falling",),
        ),
        Known(
            name="deepseek",
            equation="M_opt = 0.1715·C^0.5243, D_opt = 5.8316·C^0.4757, C = M·D; N is M/6",
            source="DeepSeek-AI 2024 (arXiv 2401.02954), section 3.2, equation 4",
            counts="non-embedding training FLOPs a token over 6, so attention counts as parameters",
            corpus="DeepSeek's own bilingual corpus and tokenizer; bits a byte of held-out text",
            interval="none: the paper gives none",
            constants={"M_base": 0.1715, "a": 0.5243, "D_base": 5.8316, "b": 0.4757},
            optima=Optima(
                points=((1e20, 0.1715 * 1e20**0.5243 / 6, 5.8316 * 1e20**0.4757),), a=0.5243, b=0.4757
            ),
            fitted={"flops": (1e17, 3e20)},
            notes=("the optimum moves with the quality of the corpus (section 3.3)",),
        ),
        Known(
            name="llama-3",
            equation="D_opt = 0.29·C^0.53; N = C/(6·D)",
            source="Llama Team 2024 (arXiv 2407.21783), section 3.2.1",
            counts=_TOTAL + " (assumption: the paper does not say)",
            corpus="Llama 3's own corpus and its tokenizer of 128,000 entries",
            interval="none: the paper gives none",
            constants={"A": 0.29, "alpha": 0.53},
            optima=Optima(points=((1e21, 1e21**0.47 / 6 / 0.29, 0.29 * 1e21**0.53),), a=0.47, b=0.53),
            fitted={"params": (40e6, 16e9), "flops": (6e18, 1e22)},
            notes=(
                "the paper's own extrapolation to 3.8e25 FLOPs, 402B on 16.55T tokens, is not what these two "
                "rounded constants give (605B on 10.5T)",
            ),
        ),
    )
}
"""By name, the default first."""

PUBLISHED = (
    PublishedAllocation(
        "Kaplan et al. 2020",
        "fit of L(N, S_min)",
        LAWS["kaplan"].optima.a,
        LAWS["kaplan"].optima.b,
        f"{_KAPLAN}, equation 6.1 and table 6",
    ),
    *(
        PublishedAllocation("Hoffmann et al. 2022", approach, a, b, f"{_HOFFMANN}, table 2")
        for approach, a, b in (
            ("1: envelope", LAWS["hoffmann-1"].optima.a, LAWS["hoffmann-1"].optima.b),
            ("2: isoFLOP", LAWS["hoffmann-2"].optima.a, LAWS["hoffmann-2"].optima.b),
            ("3: parametric", 0.46, 0.54),
        )
    ),
)
"""N_opt ∝ C^a, D_opt ∝ C^b, as printed. Kaplan's N leaves the embedding out and their C the head; Hoffmann's
count both (Porian et al. 2024, arXiv 2406.19146, on how much of the difference that makes)."""
