"""``dsc compile``: a model as a plain network with an error bound, in ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Literal


def compile_model(
    model: Path,
    /,
    sparsity: tuple[int, ...],
    target_error: float,
    out: Path = Path("net.onnx"),
    place_sparsity: tuple[int, ...] | None = None,
    noise: float = 0.0,
    amplitude: float = 1.0,
    strategy: Literal["layerwise", "interleaved"] = "layerwise",
    activation: str = "relu",
    max_kernel: int | None = None,
    size: tuple[int, ...] = (16, 16),
) -> None:
    """A convolutional network of standard layers that computes the deepest codes within a proved error, as ONNX.

    Args:
        model: What dsc.save or dsc learn wrote.
        sparsity: The most non-zeros, one number per layer; per stripe for convolutional layers.
        target_error: The largest error of an entry of the deepest codes, on the scale of `amplitude`.
        out: The file.
        place_sparsity: The most non-zeros per place of every layer but the first, where it is known.
        noise: The largest norm of the noise.
        amplitude: The largest size of an entry of the codes.
        strategy: Layer after layer, or all in step.
        activation: relu, or another of the names that to_cnn knows.
        max_kernel: Split kernels into ones of at most this size.
        size: Positions of the deepest codes in the example that the file is checked with.
    """
    import torch

    import deep_sparse_coding as dsc

    from ..dictionaries.cascade import as_cascade

    dictionary = dsc.load(model)
    net = dsc.to_cnn(
        dictionary,
        sparsity=sparsity,
        target_error=target_error,
        place_sparsity=place_sparsity,
        noise=noise,
        amplitude=amplitude,
        strategy=strategy,
        activation=activation,
        max_kernel=max_kernel,
    )
    cascade = as_cascade(dictionary)
    first = cascade.layers[0]
    shape: tuple[int, ...] = (1, first.weight.shape[0])
    if isinstance(first, dsc.ConvDictionary):
        grid = (*size, *size)[: first.axes]
        for layer in reversed(cascade.layers):
            shape = layer.signal_shape(grid)
            grid = shape[1:]
        shape = (1, *shape)
    example = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(first.dtype)
    difference = dsc.export_onnx(net, out, example=example)
    print(net.plan)
    print(f"every entry of the codes within {net.error_bound:.4g}; ONNX Runtime differs by {difference:.1e}")
    print(f"network: {out.resolve()}")
