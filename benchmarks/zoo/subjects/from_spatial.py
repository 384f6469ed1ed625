"""3-D convolutions, U-Nets with transposed convolutions and interpolation, and other dense predictors."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.zoo.case import Case, Subject


def subjects() -> list[Subject]:
    """Return networks on signals, images and volumes."""
    found = []
    for dimensions in (1, 2, 3):
        for up in ("transposed", "nearest", "linear"):
            for norm in ("batch", "instance", "group"):
                build = partial(_unet, dimensions, up, norm)
                found.append(Subject("spatial", f"U-Net {dimensions}-D, {up}, {norm} norm", build))
    found.append(Subject("spatial", "3-D residual network", _residual_3d))
    found.append(Subject("spatial", "autoencoder, unpooling", _unpooling))
    found.append(Subject("spatial", "super-resolution, pixel shuffle", _pixel_shuffle))
    found.append(Subject("spatial", "WaveNet, dilated and gated", _wavenet))
    found.append(Subject("spatial", "Fourier neural operator", _fourier))
    found.append(Subject("spatial", "spatial transformer", _spatial_transformer))
    return found


_CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_POOLS = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
_BATCH = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_INSTANCE = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
_MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


def _normalization(kind: str, dimensions: int, channels: int) -> nn.Module:
    if kind == "batch":
        return _BATCH[dimensions](channels)
    if kind == "instance":
        return _INSTANCE[dimensions](channels, affine=True)
    return nn.GroupNorm(2, channels)


class UNet(nn.Module):
    """Two levels down and up, with skip connections by concatenation."""

    def __init__(self, dimensions: int, up: str, norm: str) -> None:
        super().__init__()
        self.dimensions, self.up = dimensions, up
        convolution = _CONVOLUTIONS[dimensions]

        def block(inputs: int, outputs: int) -> nn.Module:
            return nn.Sequential(
                convolution(inputs, outputs, 3, padding=1),
                _normalization(norm, dimensions, outputs),
                nn.LeakyReLU(0.1),
                convolution(outputs, outputs, 3, padding=1),
                _normalization(norm, dimensions, outputs),
                nn.ReLU(inplace=True),
            )

        self.down = nn.ModuleList([block(2, 4), block(4, 8)])
        self.bottom = block(8, 16)
        rise = _TRANSPOSED[dimensions]
        self.rise = nn.ModuleList([rise(16, 8, 2, stride=2), rise(8, 4, 2, stride=2)]) if up == "transposed" else None
        self.narrow = None if up == "transposed" else nn.ModuleList([convolution(16, 8, 1), convolution(8, 4, 1)])
        self.ascend = nn.ModuleList([block(16, 8), block(8, 4)])
        self.pool = _POOLS[dimensions](2)
        self.head = convolution(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores for every place."""
        skips = []
        for block in self.down:
            x = block(x)
            skips.append(x)
            x = self.pool(x)
        x = self.bottom(x)
        for i, block in enumerate(self.ascend):
            x = block(torch.cat([skips.pop(), self._raise(i, x)], 1))
        scores: Tensor = self.head(x)
        return scores

    def _raise(self, i: int, x: Tensor) -> Tensor:
        if self.rise is not None:
            raised: Tensor = self.rise[i](x)
            return raised
        assert self.narrow is not None
        x = self.narrow[i](x)
        if self.up == "nearest":
            return F.interpolate(x, scale_factor=2.0)
        return F.interpolate(x, scale_factor=2.0, mode=_MODES[self.dimensions], align_corners=False)


def _unet(dimensions: int, up: str, norm: str) -> Case:
    return Case(UNet(dimensions, up, norm), (torch.randn(2, 2, *(8,) * dimensions),))


class Residual3D(nn.Module):
    """Dilated residual blocks and a mean over the volume."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv3d(1, 8, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.BatchNorm3d(8), nn.ReLU(), nn.Conv3d(8, 8, 3, padding=d, dilation=d)) for d in (1, 2, 4)
        )
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores."""
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        scores: Tensor = self.head(F.adaptive_avg_pool3d(x, 1).flatten(1))
        return scores


def _residual_3d() -> Case:
    return Case(Residual3D(), (torch.randn(2, 1, 8, 8, 8),))


class Unpooling(nn.Module):
    """SegNet: unpooling by the places that max-pooling chose."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 8, 3, padding=1)
        self.pool = nn.MaxPool2d(2, return_indices=True)
        self.unpool = nn.MaxUnpool2d(2)
        self.up = nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores for every pixel."""
        x, places = self.pool(F.elu(self.down(x)))
        scores: Tensor = self.up(self.unpool(x, places))
        return scores


def _unpooling() -> Case:
    return Case(Unpooling(), (torch.randn(2, 3, 12, 12),))


def _pixel_shuffle() -> Case:
    model = nn.Sequential(
        nn.ReflectionPad2d(1), nn.Conv2d(3, 8, 3), nn.PReLU(8), nn.Conv2d(8, 12, 3, padding=1), nn.PixelShuffle(2)
    )
    return Case(model, (torch.randn(2, 3, 8, 8),))


class WaveNet(nn.Module):
    """Dilated causal convolutions with tanh times sigmoid units."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(1, 8, 1)
        self.gated = nn.ModuleList(nn.Conv1d(8, 16, 2, dilation=d) for d in (1, 2, 4))
        self.mix = nn.ModuleList(nn.Conv1d(8, 8, 1) for _ in range(3))
        self.head = nn.Conv1d(8, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores for every step."""
        x = self.first(x)
        total: Tensor | float = 0.0
        for gated, mix in zip(self.gated, self.mix, strict=True):
            signal, gate = gated(F.pad(x, (gated.dilation[0], 0))).chunk(2, 1)
            h = mix(torch.tanh(signal) * torch.sigmoid(gate))
            x = x + h
            total = total + h
        scores: Tensor = self.head(F.relu(total))
        return scores


def _wavenet() -> Case:
    return Case(WaveNet(), (torch.randn(2, 1, 20),))


class FourierBlock(nn.Module):
    """A linear map of the lowest frequencies beside a pointwise one."""

    def __init__(self, channels: int, modes: int) -> None:
        super().__init__()
        self.modes = modes
        self.real = nn.Parameter(torch.randn(channels, channels, modes) / channels)
        self.imaginary = nn.Parameter(torch.randn(channels, channels, modes) / channels)
        self.beside = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of both, through GELU."""
        frequencies = torch.fft.rfft(x)
        low = torch.einsum("bim,iom->bom", frequencies[..., : self.modes], torch.complex(self.real, self.imaginary))
        full = torch.zeros_like(frequencies)
        full[..., : self.modes] = low
        return F.gelu(torch.fft.irfft(full, n=x.shape[-1]) + self.beside(x))


def _fourier() -> Case:
    return Case(
        nn.Sequential(nn.Conv1d(2, 8, 1), FourierBlock(8, 4), FourierBlock(8, 4), nn.Conv1d(8, 1, 1)),
        (torch.randn(2, 2, 16),),
    )


class SpatialTransformer(nn.Module):
    """An image resampled on a grid that a small network computes from it."""

    def __init__(self) -> None:
        super().__init__()
        self.locate = nn.Sequential(nn.Conv2d(1, 4, 5), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 64, 6))
        self.features = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(600, 4))

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores."""
        unchanged = torch.tensor([1.0, 0, 0, 0, 1, 0], dtype=x.dtype)
        theta = (unchanged + 0.1 * self.locate(x).tanh()).view(-1, 2, 3)
        grid = F.affine_grid(theta, list(x.shape), align_corners=False)
        scores: Tensor = self.features(F.grid_sample(x, grid, align_corners=False))
        return scores


def _spatial_transformer() -> Case:
    return Case(SpatialTransformer(), (torch.randn(2, 1, 12, 12),))
