"""The calls that users make, as written in the documentation: each block runs from top to bottom."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

import deep_sparse_coding as dsc


def test_dictionaries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    matrix = torch.eye(8)
    kernels = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    D = dsc.DenseDictionary(matrix)
    D = dsc.DenseDictionary(3 * matrix, normalize=True)
    D = dsc.DenseDictionary.dct(64, 128)
    D = dsc.DenseDictionary.low_coherence(64, 128, seed=0)
    assert D.mutual_coherence() < dsc.DenseDictionary.random(64, 128, seed=0).mutual_coherence()
    D = dsc.DenseDictionary.random(64, 256, seed=0)
    C = dsc.ConvDictionary(kernels, stride=1, boundary="valid")
    C = dsc.ConvDictionary.random(atoms=32, channels=3, size=7, stride=2, seed=0)
    model = dsc.Cascade([C, dsc.ConvDictionary.random(atoms=64, channels=32, size=5, nonzeros=4, seed=1)])
    print(model)
    table = capsys.readouterr().out
    assert all(word in table for word in ("layer", "atoms", "kernel", "stride", "coherence", "norm"))
    deepest = torch.zeros(64, 3, 3)
    assert len(model.layers) == 2
    assert model.synthesize(deepest).shape == (3, 19, 19)
    assert model.effective().shape == (64, 3, 15, 15)
    codes, signal = torch.zeros(2, 256), torch.zeros(2, 64)
    assert D.synthesize(codes).shape == signal.shape
    assert D.analyze(signal).shape == codes.shape
    assert 0 < D.mutual_coherence() <= D.babel(3) <= 3
    assert float(D.operator_norm()) > 1
    assert C.signal_shape((13, 13)) == (3, 31, 31)
    assert C.code_shape((64, 64)) == (32, 29, 29)
    other = dsc.DenseDictionary(D.matrix[:, torch.arange(255, -1, -1)].detach())
    assert torch.equal(dsc.match(D, other).permutation, torch.arange(255, -1, -1))
    dsc.save(model, "model.safetensors")
    model = dsc.load("model.safetensors")
    sample = dsc.sample(model, sparsity=(40, 6), size=(13, 13), batch=8, noise=0.01, amplitude=1.0, seed=0)
    assert sample.signal.shape == (8, 3, 39, 39)
    assert [x.shape[1] for x in sample.codes] == [32, 64]
    assert sample.noise_norms.shape == (8,)
    assert all(count <= limit for count, limit in zip(sample.stripe_sparsity, (40, 6), strict=True))
    assert dsc.stripe_sparsity(C, sample.codes[0]).shape == (8,)


def test_problems_and_solving(capsys: pytest.CaptureFixture[str]) -> None:
    kind = {"dtype": torch.float64}
    D = dsc.DenseDictionary.random(16, 32, seed=0, **kind)
    model = dsc.Cascade([D, dsc.DenseDictionary.random(32, 48, seed=1, **kind)])
    signal = torch.randn(8, 16, generator=torch.Generator().manual_seed(0), **kind)
    problem = dsc.Lasso(D, lam=0.1)
    assert problem.objective(torch.zeros(8, 32, **kind), signal).shape == problem.lam_max(signal).shape == (8,)
    for problem in (
        dsc.Lasso(D, lam=0.1, nonnegative=True, mask=torch.rand(16) > 0.2),
        dsc.LayeredLasso(model, lam=(0.1, 0.05)),
        dsc.JointLasso(model, lam=(0.1, 0.05), beta=(1.0, 1.0)),
        dsc.Lasso(D, lam=0.1),
    ):
        solution = dsc.solve(problem, signal, tol=1e-6)
        solution = dsc.solve(problem, signal, dsc.FISTA(), tol=1e-4, max_steps=2000, start=solution.codes)
        assert isinstance(solution.codes, tuple) == isinstance(problem, dsc.LayeredLasso | dsc.JointLasso)
        assert solution.status == (dsc.Status.CONVERGED,) * 8
        assert bool(solution.converged.all())
        assert "converged" in solution.message(0)
        certificate = solution.certificate
        for values in (certificate.objective, certificate.dual, certificate.gap, certificate.relative_gap):
            assert values.shape == (8,)
            assert values.dtype == torch.float64
        print(solution)
        assert "8/8 converged · FISTA · 0 steps · gap ≤ " in capsys.readouterr().out
        assert solution.unwrap() is solution.codes


def test_constrained_problems_paths_and_gradients(capsys: pytest.CaptureFixture[str]) -> None:
    kind = {"dtype": torch.float64}
    D = dsc.DenseDictionary.random(16, 32, seed=0, **kind)
    model = dsc.Cascade([D, dsc.DenseDictionary.random(32, 48, seed=1, **kind)])
    signal = torch.randn(8, 16, generator=torch.Generator().manual_seed(0), **kind)
    problem = dsc.BasisPursuit(D, epsilon=0.1)
    assert bool(dsc.solve(problem, signal).converged.all())
    assert len(dsc.solve(dsc.LayeredBasisPursuit(model, epsilon=(0.1, 0.1)), signal).unwrap()) == 2
    problem = dsc.SparseApproximation(D, sparsity=5)
    assert int((dsc.solve(problem, signal).unwrap() != 0).sum(1).max()) <= 5
    assert len(dsc.solve(dsc.LayeredSparseApproximation(model, sparsity=(5, 3)), signal).unwrap()) == 2
    problem = dsc.Lasso(D, lam=0.1)
    path = dsc.solve_path(problem, signal, lams=20)
    assert len(path) == 20
    lam = dsc.choose_lam(D, signal, density=0.05)
    print(lam)
    assert f"{float(lam):.3g}"[:4] in capsys.readouterr().out
    assert lam.density == pytest.approx(0.05, abs=0.01)
    assert dsc.choose_lam(D, signal, noise=0.02) > 0
    signal.requires_grad_()
    codes = dsc.solve(problem, signal, differentiable=True).codes
    codes.square().sum().backward()
    assert float(signal.grad.abs().max()) > 0


def test_guarantees_and_networks(capsys: pytest.CaptureFixture[str]) -> None:
    model = _low_coherence()
    print(dsc.prove.uniqueness(model, sparsity=(3, 2)))
    print(dsc.prove.equivalence(model, sparsity=(3, 2)))
    g = dsc.prove.uniqueness(model, sparsity=(3, 2))
    assert g.proved
    assert g.conditions
    assert g.source
    assert capsys.readouterr().out.count("proved:") == 2
    net = dsc.to_cnn(
        model, sparsity=(3, 2), amplitude=1.0, noise=0.0, target_error=1e-2, strategy="layerwise", activation="relu"
    )
    assert isinstance(net, torch.nn.Sequential)
    signal = dsc.sample(model, sparsity=(8, 1), size=(5, 5), batch=4, seed=0).signal
    codes = net(signal)
    assert codes.shape == (4, 16, 5, 5)
    assert 0 < net.error_bound <= 1e-2
    assert str(net.plan)
    problem = dsc.Lasso(model.layers[0], lam=0.02)
    solution = dsc.solve(problem, signal, tol=1e-6)
    print(dsc.prove.posterior(solution))
    first = dsc.to_cnn(model, sparsity=(3, 2), amplitude=1.0, target_error=1e-2, layer=1)
    certificate = dsc.certify(problem, signal, first(signal))
    assert certificate.gap.shape == (4,)
    print(certificate.posterior())


def test_the_other_guarantees(capsys: pytest.CaptureFixture[str]) -> None:
    model = _low_coherence()
    print(dsc.prove.stability(model, sparsity=(3, 2), noise=0.01, epsilon=(0.0, 0.0)))
    print(dsc.prove.stability(model, sparsity=(3, 2), noise=0.01, epsilon=(0.0, 0.0), kind="l1", nonzeros=(9, 4)))
    print(dsc.prove.recovery(model, sparsity=(3, 2)))
    assert capsys.readouterr().out.count("proved:") == 3
    signal = dsc.sample(model, sparsity=(8, 1), size=(5, 5), batch=2, seed=0).signal
    solution = dsc.solve(dsc.Lasso(model.layers[0], lam=0.02), signal)
    assert dsc.prove.robustness(solution, radius=0.01).radius.shape == (2,)
    g = dsc.prove.convergence(model, sparsity=(3, 2), amplitude=1.0, noise=0.0, steps=(20, 20))
    assert g.proved
    assert g.conditions
    assert g.bounds
    assert g.source


def test_the_other_networks(tmp_path: Path) -> None:
    model = _low_coherence()
    settings = {"sparsity": (3, 2), "amplitude": 1.0, "target_error": 1e-2}
    signal = dsc.sample(model, sparsity=(8, 1), size=(5, 5), batch=4, seed=0).signal
    net = dsc.to_cnn(model, **settings, noise=0.0, strategy="interleaved", activation="relu")
    codes = net(signal)
    assert codes.shape == (4, 16, 5, 5)
    assert 0 < net.error_bound <= 1e-2
    tnet = dsc.to_transformer(model, size=signal.shape[-2:], **settings)
    assert (tnet(signal) - codes).abs().max() <= tnet.error_bound + net.error_bound
    problem = dsc.Lasso(model.layers[0], lam=0.02)
    lista = dsc.unfold(problem, steps=12, learn=("analysis", "threshold"))
    assert lista.error_bound(sparsity=3) is not None
    first = dsc.to_cnn(model, **settings, layer=1)
    coder = dsc.Safeguarded(first, problem, tol=1e-3)
    assert (dsc.certify(problem, signal, coder(signal), tol=1e-3).relative_gap <= 1e-3).all()
    pytest.importorskip("onnxruntime")
    assert dsc.export_onnx(first, tmp_path / "codes.onnx", example=signal) <= 1e-5


def _low_coherence() -> dsc.Cascade:
    return dsc.Cascade(
        [
            dsc.ConvDictionary.low_coherence(atoms=16, channels=1, size=8, stride=4, seed=0),
            dsc.ConvDictionary.low_coherence(atoms=16, channels=16, size=3, stride=2, nonzeros=4, seed=0),
        ]
    )


def test_sparsity_in_any_network() -> None:
    torch_generator = torch.Generator().manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
    x, t = torch.randn(32, 8, generator=torch_generator), torch.randint(0, 3, (32,), generator=torch_generator)
    with dsc.ActivationPenalty(net, targets=[torch.nn.ReLU], weight=1e-4) as penalty:
        loss = F.cross_entropy(net(x), t) + penalty.value()
        loss.backward()
    assert "hoyer" in str(penalty.report()).lower()
    with dsc.Probe(net, targets=[torch.nn.ReLU]) as probe:
        net(x)
        assert list(probe.activations) == ["1"]


def test_learning() -> None:
    images = torch.randn(4, 1, 24, 24, generator=torch.Generator().manual_seed(0))
    result = dsc.learn(images, atoms=(6, 8), size=(5, 3), lam=(0.1, 0.1), epochs=2, seed=0)
    assert isinstance(result.model, dsc.Cascade)
    assert result.history is not None
    assert len(result.dead_atoms) == 2
    codes = result.encode(images)
    assert [x.shape[:2] for x in codes] == [(4, 6), (4, 8)]
