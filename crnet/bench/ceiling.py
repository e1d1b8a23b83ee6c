"""What the machine can do at best, in this run: a large convolution, a large matrix product, a large copy."""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from crnet.bench.timing import best
from crnet.encoders.frozen import compute_dtype

CHANNELS, SIDE, KERNEL = 256, 96, 3  # of the convolution: like those of the heads, on a larger map
PRODUCT = 4096  # side of the matrices
COPY_BYTES = 1 << 28


@dataclass(frozen=True)
class Ceiling:
    """Operations and bytes a second, an operation being an addition or a multiplication.

    Attributes:
        dtype: Of convolution and product, e.g. "bfloat16".
        copied: Read and written.
    """

    dtype: str
    convolution: float
    product: float
    copied: float


@torch.no_grad()
def measure_ceiling(device: str, precision: str, seconds: float) -> Ceiling:
    """The best of the runs that fit into ``seconds`` each; ``precision`` as in ``train.precision``."""
    large = device == "cuda"
    dtype = compute_dtype(torch.device(device), precision)
    channels, batch = (512, 64) if large else (CHANNELS, 4)
    images = torch.randn(batch, channels, SIDE, SIDE, device=device, dtype=dtype)
    images = images.contiguous(memory_format=torch.channels_last)
    weight = torch.randn(channels, channels, KERNEL, KERNEL, device=device, dtype=dtype)
    weight = weight.contiguous(memory_format=torch.channels_last)
    convolution = best(lambda: F.conv2d(images, weight, padding=1), device, seconds)
    side = 2 * PRODUCT if large else PRODUCT // 2
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    product = best(lambda: left @ right, device, seconds)
    source = torch.zeros((4 if large else 1) * COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copied = best(lambda: target.copy_(source), device, seconds)
    return Ceiling(
        str(dtype).removeprefix("torch."),
        2 * batch * SIDE**2 * channels**2 * KERNEL**2 / convolution,
        2 * side**3 / product,
        2 * source.nbytes / copied,
    )
