"""What accelerators can do at most, and how long a run takes on them."""

from __future__ import annotations

from dataclasses import dataclass

DAY = 24 * 3600.0

USUAL_MFU = 0.40
"""Share of the peak that a training run reaches where the user gives none. Assumption: Llama 3 405B
reports 38 to 43% of BF16 peak on 8,192 to 16,384 H100s (arXiv 2407.21783, table 4); one that was never
tuned reaches less."""


@dataclass(frozen=True)
class Accelerator:
    """peak: dense matrix FLOP/s in bf16 with fp32 sums, no sparsity; vendors print twice that "with
    sparsity"."""

    name: str
    peak: float
    source: str


ACCELERATORS = {
    item.name: item
    for item in (
        Accelerator("v100", 125e12, "NVIDIA V100 datasheet, SXM2; fp16, the chip has no bf16"),
        Accelerator("t4", 65e12, "NVIDIA T4 datasheet; fp16, the chip has no bf16"),
        Accelerator("a10g", 125e12, "NVIDIA A10 datasheet"),
        Accelerator("a100", 312e12, "NVIDIA A100 datasheet, SXM and PCIe"),
        Accelerator("l40s", 362e12, "NVIDIA L40S datasheet"),
        Accelerator("h100", 989e12, "NVIDIA H100 datasheet, SXM: 1,979 TFLOP/s with sparsity, halved"),
        Accelerator("h100-pcie", 756e12, "NVIDIA H100 datasheet, PCIe: 1,513 TFLOP/s with sparsity, halved"),
        Accelerator("h100-nvl", 835e12, "NVIDIA H100 datasheet, NVL: 1,671 TFLOP/s with sparsity, halved"),
        Accelerator("h200", 989e12, "NVIDIA H200 datasheet, SXM: 1,979 TFLOP/s with sparsity, halved"),
        Accelerator("b200", 2250e12, "NVIDIA Blackwell datasheet, HGX B200: 4.5 PFLOP/s sparse, halved"),
        Accelerator("gb200", 2500e12, "NVIDIA Blackwell datasheet, a GPU of GB200: 5 PFLOP/s sparse, halved"),
        Accelerator("mi250x", 383e12, "AMD Instinct MI250X data sheet, both dies"),
        Accelerator("mi300x", 1307e12, "AMD Instinct MI300X data sheet"),
        Accelerator("tpu-v4", 275e12, "Google Cloud TPU v4 documentation, a chip"),
        Accelerator("tpu-v5e", 197e12, "Google Cloud TPU v5e documentation, a chip"),
        Accelerator("tpu-v5p", 459e12, "Google Cloud TPU v5p documentation, a chip"),
    )
}


@dataclass(frozen=True)
class Machine:
    """`gpus` accelerators that reach the share `mfu` of their peak; price an accelerator and hour."""

    accelerator: Accelerator
    gpus: float
    mfu: float
    price: float | None

    @property
    def flops_per_second(self) -> float:
        return self.gpus * self.accelerator.peak * self.mfu

    def flops(self, days: float) -> float:
        return self.flops_per_second * days * DAY

    def days(self, flops: float) -> float:
        return flops / self.flops_per_second / DAY

    def gpu_hours(self, flops: float) -> float:
        return 24 * self.days(flops) * self.gpus
