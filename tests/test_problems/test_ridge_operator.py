"""The operator that turns an elastic net into a Lasso, against the stacked matrix."""

from __future__ import annotations

import math

import torch

import deep_sparse_coding as dsc
from deep_sparse_coding.problems.operators import RidgeOperator, SingleOperator
from operators import Operator, each_operator
from references import explicit_matrix
from strategies import normal, rng

KIND = {"dtype": torch.float64}


@each_operator()
def test_the_operator_of_a_ridge_is_the_stacked_matrix(operator: Operator) -> None:
    dictionary, generator = operator.build(), rng(2)
    shape = dictionary.signal_shape(operator.size)
    matrix = explicit_matrix(dictionary, operator.size)
    stacked = torch.cat([matrix, math.sqrt(0.3) * torch.eye(matrix.shape[1], **KIND)])
    ridge = RidgeOperator(SingleOperator(dictionary, None, operator.size), 0.3)
    codes = normal(2, *dictionary.code_shape(shape[1:]), generator=generator)
    data = (normal(2, *shape, generator=generator), normal(*codes.shape, generator=generator))
    with torch.no_grad():
        image = torch.cat([block.flatten(1) for block in ridge.synthesize((codes,))], 1)
        back = ridge.analyze(data)[0].flatten(1)
    assert torch.allclose(image, codes.flatten(1) @ stacked.T, atol=1e-12)
    assert torch.allclose(back, torch.cat([block.flatten(1) for block in data], 1) @ stacked, atol=1e-12)
    norms = ridge.squared_norms()[0].expand(1, *codes.shape[1:]).flatten()
    assert torch.allclose(norms, stacked.square().sum(0), atol=1e-12)
    assert torch.linalg.matrix_norm(stacked, 2) ** 2 <= ridge.lipschitz()[0] * (1 + 1e-12)
    written = ridge.matrix()
    assert (written is None) == isinstance(dictionary, dsc.ConvDictionary)
    assert written is None or torch.allclose(written, stacked, atol=1e-15)
    sizes = ridge.entrywise_abs().synthesize((codes.abs(),))
    assert torch.allclose(sizes[0].flatten(1), codes.abs().flatten(1) @ matrix.abs().T, atol=1e-12)
    assert torch.equal(sizes[1], math.sqrt(0.3) * codes.abs())
