"""``dsc prove``: what is proved about a model before any signal is seen."""

from __future__ import annotations

from pathlib import Path


def prove(
    model: Path,
    /,
    sparsity: tuple[int, ...],
    noise: float = 0.0,
    amplitude: float = 1.0,
    target_error: float | None = None,
) -> None:
    """What is proved about all codes of a sparsity: uniqueness, l0 = l1, stability, convergence of a CNN.

    Args:
        model: What dsc.save or dsc learn wrote.
        sparsity: The most non-zeros, one number per layer; per stripe for convolutional layers.
        noise: The largest norm of the noise.
        amplitude: The largest size of an entry of the codes.
        target_error: The error that a network is to reach at last; without it ten steps per layer are looked at.
    """
    import deep_sparse_coding as dsc

    dictionary = dsc.load(model)
    print(dictionary)
    steps = None if target_error is not None else 10
    guarantees = {
        "uniqueness": lambda: dsc.prove.uniqueness(dictionary, sparsity),
        "equivalence": lambda: dsc.prove.equivalence(dictionary, sparsity),
        "recovery": lambda: dsc.prove.recovery(dictionary, sparsity),
        "stability": lambda: dsc.prove.stability(dictionary, sparsity, noise=noise),
        "convergence": lambda: dsc.prove.convergence(
            dictionary, sparsity, noise=noise, amplitude=amplitude, steps=steps, target_error=target_error
        ),
    }
    for name, ask in guarantees.items():
        print(f"\n{name}")
        try:
            print(ask())
        except dsc.UnsupportedError as error:
            print(f"not asked: {error}")
