"""The jobs of `learning.py`: every method as a generator of atoms, and what follows it with a clock.

Kept apart from the command line only for its length.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

Atoms = Any
# A learner yields its atoms again and again; what it does between is timed.
Learner = Callable[[], Iterator[Atoms]]
NAMES = ("camera", "astronaut", "coffee", "chelsea", "rocket", "moon", "brick", "gravel", "grass", "coins")


@dataclass(frozen=True)
class Curve:
    """One run: seconds of processor time and the held-out objective per sample."""

    job: str
    method: str
    setting: str
    seconds: list[float]
    objective: list[float]

    def time_to(self, level: float) -> float | None:
        """Return the seconds until the objective is at or below a level, between two points by interpolation."""
        before: tuple[float, float] | None = None
        for t, value in zip(self.seconds, self.objective, strict=True):
            if value <= level:
                if before is None or before[1] == value:
                    return t
                return before[0] + (t - before[0]) * (before[1] - level) / (before[1] - value)
            before = (t, value)
        return None


def photographs() -> list[Any]:
    """Return photographs of scikit-image in grey, 0 to 1, float64."""
    import numpy as np
    from skimage import data

    found = []
    for name in NAMES:
        image = np.asarray(getattr(data, name)(), dtype=float)
        found.append((image.mean(2) if image.ndim == 3 else image) / 255)
    return found


def patches(count: int, seed: int) -> Any:
    """Return 8×8 patches without their means and of some contrast, scaled to deviation 1, ``(count, 64)``."""
    import numpy as np

    rng = np.random.default_rng(seed)
    found = []
    for image in photographs():
        windows = np.lib.stride_tricks.sliding_window_view(image, (8, 8)).reshape(-1, 64)
        chosen = windows[rng.choice(len(windows), 3 * count // len(NAMES), replace=False)]
        found.append(chosen - chosen.mean(1, keepdims=True))
    flat = np.concatenate(found)
    flat = flat[np.linalg.norm(flat, axis=1) > 0.2]
    rng.shuffle(flat)
    flat = flat[:count]
    return np.ascontiguousarray(flat / flat.std())


def crops(size: int, each: int, seed: int) -> Any:
    """Return crops of high-passed photographs of deviation 1, ``(n, size, size)``, float32."""
    import numpy as np
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(seed)
    found = []
    for image in photographs():
        detail = image - gaussian_filter(image, 3.0, mode="reflect")
        detail /= detail.std()
        for _ in range(each):
            row, column = (rng.integers(n - size + 1) for n in detail.shape)
            found.append(detail[row : row + size, column : column + size])
    return np.stack(found).astype(np.float32)[rng.permutation(len(found))]


def follow(
    job: str, method: str, setting: str, learner: Learner, evaluate: Callable[[Atoms], float], limit: float = 15.0
) -> Curve:
    """Run a learner up to a limit in seconds, and evaluate its atoms whenever its time has grown by a fifth."""
    import numpy as np

    seconds, values, spent = [], [], 0.0
    steps, last = learner(), None
    while spent < limit:
        began = time.process_time()
        atoms = next(steps, None)
        spent += time.process_time() - began
        if atoms is None:
            break
        last = (spent, np.array(atoms, copy=True))
        if not seconds or spent > 1.2 * seconds[-1]:
            seconds.append(spent)
            values.append(evaluate(atoms))
    if last is not None and last[0] > seconds[-1]:
        seconds.append(last[0])
        values.append(evaluate(last[1]))
    curve = Curve(job, method, setting, seconds, values)
    print(f"  {method:<34} {setting:<26} {seconds[-1]:8.2f} s   {values[-1]:.5g}", flush=True)
    return curve


def dense_curves(small: bool) -> list[Curve]:
    """Return the curves of learning 256 atoms from 8×8 patches."""
    import numpy as np
    import spams
    import torch
    from sklearn.decomposition import MiniBatchDictionaryLearning

    import deep_sparse_coding as dsc
    from deep_sparse_coding.learning import OnlineLearner

    atoms, lam = (64, 1.2) if small else (256, 1.2)
    data = patches(4000 if small else 42_000, 0)
    held, train = torch.from_numpy(data[:2000]), np.ascontiguousarray(data[2000:])
    count, passes = len(train), 2 if small else 8

    def evaluate(matrix: Atoms) -> float:
        dictionary = dsc.DenseDictionary(
            torch.from_numpy(np.array(matrix, dtype=np.float64, order="C")), normalize=True
        )
        return float(dsc.solve(dsc.Lasso(dictionary, lam), held, tol=1e-5).certificate.objective.mean())

    def batches(size: int) -> Iterator[tuple[Any, bool]]:
        """Yield batches of all passes, and after which the atoms are wanted: at 1/8, 1/4, 1/2, 1, 2, ... passes."""
        rng = np.random.default_rng(1)
        wanted = [p for p in (0.125, 0.25, 0.5, 1, 2, 3, 4, 6, 8) if p <= passes]
        seen = 0
        for _ in range(passes):
            order = rng.permutation(count)
            for first in range(0, count, size):
                rows = order[first : first + size]
                seen += len(rows)
                due = bool(wanted) and seen >= wanted[0] * count
                wanted = wanted[1:] if due else wanted
                yield train[rows], due

    def ours(size: int) -> Iterator[Atoms]:
        learner = OnlineLearner(atoms, lam=lam, seed=0)
        for batch, due in batches(size):
            learner.partial_fit(torch.from_numpy(batch))
            if due:
                yield learner.model.weight.detach().numpy()

    def scikit(size: int) -> Iterator[Atoms]:
        options: dict[str, Any] = {"alpha": lam, "random_state": 0, "batch_size": size, "fit_algorithm": "cd"}
        learner = MiniBatchDictionaryLearning(atoms, **options)
        for batch, due in batches(size):
            learner.partial_fit(batch)
            if due:
                yield learner.components_.T

    def train_dl(size: int) -> Iterator[Atoms]:
        # Its own loop over batches runs compiled; it is stopped and gone on with by its model.
        signals, model, matrix, done = np.asfortranarray(train.T), None, None, 0
        for share in (p for p in (0.125, 0.25, 0.5, 1, 2, 3, 4, 6, 8) if p <= passes):
            steps = round(share * count / size) - done
            done += steps
            more: dict[str, Any] = {"K": atoms} if model is None else {"D": matrix, "model": model}
            matrix, model = spams.trainDL(
                signals, return_model=True, lambda1=lam, numThreads=1, batchsize=size, iter=steps, mode=2, modeD=0,
                verbose=False, **more,
            )  # fmt: skip
            yield matrix

    warm = OnlineLearner(atoms, lam=lam, seed=1)  # compiled before the clock runs
    warm.partial_fit(torch.from_numpy(train[:512]))
    evaluate(warm.model.weight.detach().numpy())
    found = []
    for size in (256, 512):
        found.append(follow("dense", "deep_sparse_coding", f"batch {size}", lambda: ours(size), evaluate))  # noqa: B023
    for size in (256, 512, 1024):
        found.append(follow("dense", "SPAMS trainDL", f"batch {size}", lambda: train_dl(size), evaluate))  # noqa: B023
    for size in (256, 1024):
        name = "scikit-learn MiniBatchDictionaryLearning"
        found.append(follow("dense", name, f"batch {size}", lambda: scikit(size), evaluate))  # noqa: B023
    return found


def conv_curves(small: bool) -> list[Curve]:
    """Return the curves of learning convolutional atoms from crops of photographs."""
    import numpy as np
    import torch

    import deep_sparse_coding as dsc
    from deep_sparse_coding.learning import OnlineLearner

    atoms, kernel, size = (8, 6, 48) if small else (32, 8, 96)
    lam, limit = 1.0, (5.0 if small else 24.0)
    images = crops(size, 1 if small else 3, 0)
    third = len(images) // 3
    held, train = torch.from_numpy(images[:third])[:, None], images[third:]

    def evaluate(kernels: Atoms) -> float:
        """Kernels ``(atoms, k, k)``."""
        tensor = torch.from_numpy(np.array(kernels, dtype=np.float32, order="C"))[:, None]
        problem = dsc.Lasso(dsc.ConvDictionary(tensor, normalize=True), lam)
        return float(dsc.solve(problem, held, tol=1e-3).certificate.objective.mean())

    def ours(batch: int) -> Iterator[Atoms]:
        learner = OnlineLearner(atoms, size=kernel, lam=lam, seed=0)
        for turn in range(2 if small else 8):
            order = np.random.default_rng(turn).permutation(len(train))
            for first in range(0, len(train), batch):
                learner.partial_fit(torch.from_numpy(train[order[first : first + batch]])[:, None])
                if (first // batch) % max(1, 5 // batch) == 0 or first + batch >= len(train):
                    yield learner.model.weight.detach().numpy()[:, 0]

    def start() -> Any:
        return np.random.default_rng(0).standard_normal((kernel, kernel, atoms)).astype(np.float32)

    def sporco_online(steps: int) -> Iterator[Atoms]:
        from sporco.dictlrn import onlinecdl

        told = {
            "Verbose": False, "eta_a": 10.0, "eta_b": 20.0,
            "CBPDN": {"rho": 50.0 * lam + 0.5, "AutoRho": {"Enabled": True}, "RelaxParam": 1.8, "RelStopTol": 5e-3,
                      "MaxMainIter": steps, "FastSolve": False, "DataType": np.float32},
        }  # fmt: skip
        learner = onlinecdl.OnlineConvBPDNDictLearn(start(), lam, onlinecdl.OnlineConvBPDNDictLearn.Options(told))
        for turn in range(1000):
            for index in np.random.default_rng(turn).permutation(len(train)):
                learner.solve(train[index])
                yield np.moveaxis(learner.getdict().squeeze(), -1, 0)

    def sporco_batch(rho: float) -> Iterator[Atoms]:
        from sporco.dictlrn import cbpdndl

        told = {
            "Verbose": False, "MaxMainIter": 10, "AccurateDFid": False,
            "CBPDN": {"rho": rho, "AutoRho": {"Enabled": True}}, "CCMOD": {"rho": 10.0, "AutoRho": {"Enabled": True}},
        }  # fmt: skip
        options = cbpdndl.ConvBPDNDictLearn.Options(told, xmethod="admm", dmethod="cns")
        signals = np.moveaxis(train, 0, -1)
        learner = cbpdndl.ConvBPDNDictLearn(start(), signals, lam, options, xmethod="admm", dmethod="cns")
        for _ in range(1000):
            learner.solve()
            yield np.moveaxis(learner.getdict().squeeze(), -1, 0)

    warm = OnlineLearner(atoms, size=kernel, lam=lam, seed=1)
    warm.partial_fit(torch.from_numpy(train[:1])[:, None])
    evaluate(warm.model.weight.detach().numpy()[:, 0])
    found = []
    for batch in (1, 2):
        found.append(follow("conv", "deep_sparse_coding", f"batch {batch}", lambda: ours(batch), evaluate))  # noqa: B023
    for steps in (50, 200):
        name = "SPORCO OnlineConvBPDNDictLearn"
        found.append(follow("conv", name, f"{steps} ADMM steps", lambda: sporco_online(steps), evaluate, limit))  # noqa: B023
    for rho in (5.0, 50.0):
        name = "SPORCO ConvBPDNDictLearn"
        found.append(follow("conv", name, f"rho {rho:g}", lambda: sporco_batch(rho), evaluate, limit))  # noqa: B023
    return found


def line_curves(small: bool) -> list[Curve]:
    """Return the curves of learning on one axis, rows of photographs as signals: what alphacsc does."""
    import numpy as np
    import torch
    from alphacsc import BatchCDL, OnlineCDL

    import deep_sparse_coding as dsc
    from deep_sparse_coding.learning import OnlineLearner, learn

    atoms, kernel, length, lam = 8, 16, 256, 1.0
    rows = np.concatenate([image[:: len(image) // (4 if small else 24)] for image in crops(length, 1, 0)])
    rows = rows.astype(np.float64)[np.random.default_rng(0).permutation(len(rows))]
    third = len(rows) // 3
    held, train = torch.from_numpy(rows[:third])[:, None], rows[third:, None]
    begin = train[:atoms, :, 40 : 40 + kernel]
    begin = begin / np.linalg.norm(begin, axis=2, keepdims=True)

    def evaluate(kernels: Atoms) -> float:
        """Kernels ``(atoms, 1, k)``."""
        problem = dsc.Lasso(
            dsc.ConvDictionary(torch.from_numpy(np.array(kernels, dtype=np.float64)), normalize=True), lam
        )
        return float(dsc.solve(problem, held, tol=1e-4).certificate.objective.mean())

    first = dsc.ConvDictionary(torch.from_numpy(begin), normalize=True)

    def ours(batch: int) -> Iterator[Atoms]:
        learner = OnlineLearner(atoms, size=(kernel,), lam=lam, seed=0, start=first)
        for turn in range(10):
            order = np.random.default_rng(turn).permutation(len(train))
            for at in range(0, len(train), batch):
                learner.partial_fit(torch.from_numpy(train[order[at : at + batch]]))
            yield learner.model.weight.detach().numpy()

    def in_batch() -> Iterator[Atoms]:
        model = first
        for _ in range(5):
            model = learn(torch.from_numpy(train), atoms, size=(kernel,), lam=lam, epochs=4, seed=0, start=model).model
            yield model.weight.detach().numpy()  # type: ignore[union-attr]

    def theirs(kind: Any, more: dict[str, Any]) -> Iterator[Atoms]:
        atoms_now = begin
        for _ in range(3 if small else 8):
            learner = kind(
                atoms, kernel, reg=lam, lmbd_max="fixed", n_iter=5, D_init=atoms_now, rank1=False,
                uv_constraint="auto", verbose=0, random_state=0, sort_atoms=False, **more,
            ) if kind is BatchCDL else kind(
                atoms, kernel, reg=lam, lmbd_max="fixed", n_iter=20, D_init=atoms_now, rank1=False,
                uv_constraint="auto", verbose=0, random_state=0, **more,
            )  # fmt: skip
            learner.fit(train)
            atoms_now = learner.D_hat_
            yield atoms_now

    OnlineLearner(atoms, size=(kernel,), lam=lam, seed=0, start=first).partial_fit(torch.from_numpy(train[:8]))
    evaluate(begin)
    for kind in (BatchCDL, OnlineCDL):  # compiled before the clock runs
        kind(atoms, kernel, reg=lam, lmbd_max="fixed", n_iter=1, D_init=begin, rank1=False, verbose=0).fit(train[:8])
    found = [follow("line", "deep_sparse_coding", f"batch {b}", lambda: ours(b), evaluate) for b in (8, 32)]  # noqa: B023
    found.append(follow("line", "deep_sparse_coding, in batch", "", in_batch, evaluate))
    found.append(follow("line", "alphacsc BatchCDL", "lgcd", lambda: theirs(BatchCDL, {}), evaluate))
    for size in (1, 8):
        more = {"batch_size": size, "alpha": 0.8}
        found.append(follow("line", "alphacsc OnlineCDL", f"batch {size}", lambda: theirs(OnlineCDL, more), evaluate))  # noqa: B023
    return found
