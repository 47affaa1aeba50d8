"""Exponents that others report, beside which ours are shown."""

from __future__ import annotations

from analysis.values import PublishedAllocation

_KAPLAN = "Kaplan et al. 2020 (arXiv 2001.08361), equation 6.1 and table 6"
_HOFFMANN = "Hoffmann et al. 2022 (arXiv 2203.15556), table 2"

PUBLISHED = (
    PublishedAllocation("Kaplan et al. 2020", "fit of L(N, S_min)", 0.73, 0.27, _KAPLAN),
    PublishedAllocation("Hoffmann et al. 2022", "1: envelope", 0.50, 0.50, _HOFFMANN),
    PublishedAllocation("Hoffmann et al. 2022", "2: isoFLOP", 0.49, 0.51, _HOFFMANN),
    PublishedAllocation("Hoffmann et al. 2022", "3: parametric", 0.46, 0.54, _HOFFMANN),
)
"""N_opt ∝ C^a, D_opt ∝ C^b. Kaplan's N leaves the embedding out and their C the head; Hoffmann's
count both (Porian et al. 2024, arXiv 2406.19146, on how much of the difference that makes)."""
