"""Classes of signals whose codes are known, for the comparison of compiled networks with solvers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Case:
    """A class of signals: its model, its size and number, and how many stripes its non-zeros lie apart."""

    name: str
    layers: tuple[dict[str, Any], ...]
    sparsity: int
    size: int
    batch: int
    spacing: int = 1

    def model(self) -> Any:
        """Return the cascade, circular, in float32."""
        import deep_sparse_coding as dsc

        kinds = [dsc.ConvDictionary.low_coherence(**kind, boundary="circular", seed=0) for kind in self.layers]
        return dsc.Cascade(kinds)


@dataclass(frozen=True)
class Drawn:
    """A case with its signals: codes of all layers, and the limits that they meet."""

    case: Case
    model: Any
    signal: Any
    codes: tuple[Any, ...]
    limits: dict[str, Any]


def cases(small: bool) -> list[Case]:
    """Return the classes; on the large image with one channel, on the small ones with three."""
    image, batch = (64, 8) if small else (256, 64)
    tile = {"channels": 1, "size": 8, "stride": 8}
    second = {"atoms": 12, "channels": 8, "size": 2, "stride": 2, "nonzeros": 2}
    three = {"channels": 3, "size": 8}
    return [
        Case(f"{image}², 48 kernels 8², stride 8", ({"atoms": 48, **tile},), 4, image, 1),
        Case(f"{image}², 16 kernels 8², stride 4", ({"atoms": 16, **tile, "stride": 4},), 2, image, 1),
        Case(f"{image}², 4 kernels 9², stride 1", ({"atoms": 4, "channels": 1, "size": 9},), 1, image, 1),
        Case(f"{image}², two layers", ({"atoms": 8, **tile, "stride": 4}, second), 1, image, 1, 2),
        Case(f"{batch} × 3×32², 96 kernels 8², stride 8", ({"atoms": 96, **three, "stride": 8},), 4, 32, batch),
        Case(f"{batch} × 3×32², 16 kernels 8², stride 4", ({"atoms": 16, **three, "stride": 4},), 2, 32, batch),
        Case(f"{batch} × 3×32², two layers", ({"atoms": 8, **three, "stride": 4}, second), 1, 32, batch, 2),
    ]


def draw(case: Case) -> Drawn:
    """Return signals of the class: the deepest codes at places so far apart that no stripe holds two of them."""
    import torch

    import deep_sparse_coding as dsc

    model = case.model()
    exact = dsc.Cascade([layer.cast(torch.float64) for layer in model.layers])
    rng = torch.Generator().manual_seed(0)
    apart = 1
    for layer in model.layers:
        apart *= layer.stride[0]
    deepest: Any = exact.layers[-1]
    grid = case.size // apart
    step = case.spacing * (2 * deepest.lags[0] + 1)
    codes = torch.zeros(case.batch, deepest.atoms, grid, grid, dtype=torch.float64)
    for image in codes:
        for row in range(0, grid - step + 1, step):
            for column in range(0, grid - step + 1, step):
                where = torch.randperm(deepest.atoms, generator=rng)[: case.sparsity]
                sizes = 0.5 + 0.5 * torch.rand(case.sparsity, generator=rng, dtype=torch.float64)
                image[where, row, column] = sizes * (2.0 * torch.randint(0, 2, sizes.shape, generator=rng) - 1)
    every = [codes]
    for layer in reversed(exact.layers[1:]):
        every.insert(0, layer.synthesize(every[0]))
    with torch.no_grad():
        signal = exact.layers[0].synthesize(every[0]).float()
    pairs = list(zip(exact.layers, every, strict=True))
    limits: dict[str, Any] = {
        "sparsity": tuple(int(dsc.stripe_sparsity(d, x).max()) for d, x in pairs),
        "amplitude": tuple(max(1.0, float(x.detach().abs().max()) * (1 + 1e-9)) for _, x in pairs),
    }
    if len(pairs) > 1:
        from deep_sparse_coding.dictionaries import place_sparsity

        counts = [int(place_sparsity(d, x).max()) for d, x in zip(exact.layers[1:], every[:-1], strict=True)]
        limits["place_sparsity"] = tuple(counts)
    return Drawn(case, model, signal.detach(), tuple(x.detach() for x in every), limits)


def true_error(drawn: Drawn, codes: Any) -> float:
    """Return ``‖x - x*‖_∞`` of the deepest codes."""
    return float((codes.double() - drawn.codes[-1]).abs().max())


def effective(model: Any) -> tuple[Any, Any]:
    """Return one dictionary of the cascade's effective atoms, scaled to unit norm, and their norms by code."""
    import torch

    import deep_sparse_coding as dsc

    atoms = model.effective().detach()
    norms = torch.linalg.vector_norm(atoms.flatten(1), dim=1).reshape(-1, 1, 1, 1)
    stride = math.prod(layer.stride[0] for layer in model.layers)
    return dsc.ConvDictionary(atoms, stride=stride, boundary="circular", normalize=True), norms.reshape(1, -1, 1, 1)
