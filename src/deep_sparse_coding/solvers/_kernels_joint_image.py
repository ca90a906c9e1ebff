"""One sample of a convolutional joint problem on its way to its codes: rounds over all layers together.

What the rounds are is said in `_kernels_joint.py`, which hands out the samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from deep_sparse_coding.kernel_cache import forget_stale_kernels

from . import _kernels_joint_lists as lists
from ._kernels_joint_windows import LANES, TILE, Lines, Reals, gradient_rows

forget_stale_kernels()

# Calls work(i, count) for i below count, at once or one by one, and waits for all.
Spread = Callable[[Callable[[int, int], None]], None]

_SLACK = {4: 1e-6, 8: 1e-13}  # relative excess of |g_i| over w_i that counts as rounding, by bytes of a number
_NOISE = {4: 1e-7, 8: 1e-14}  # relative fall of the objective that may be rounding
_FALL = 0.5  # entries above this share of the largest |g_i|/w_i enter the working set
_REACH = 0.9  # entries above this share of their weight join the working set at the end: they may come to violate
_EARLY_SWEEPS = 3  # sweeps of a round that only collects entries
_LAST_SWEEPS = 4
_PASSES = 6  # turns of sweeps and Newton steps in one round
_INNER = 0.3  # share of the gap that is wanted at which the working set is solved well enough
_NEXT = 0.1  # nor need it be solved better than this share of the gap that the round began with
_SHALLOW, _DEEP = 8, 64  # steps of conjugate gradients: deep where the signs rest
_DEEPEST = 128  # the same where no sign changed at all
_EARLY_ENERGY = 1e-1  # share of the gradient's energy at which they stop in a round that only collects entries
_ENERGY, _LEAST = 3e-3, 1e-8  # the same in the others: smaller and smaller as signs rest
_TRIALS = 5  # halvings of a step that does not pay
_IDLE = {4: 3, 8: 6}  # rounds in a row without progress that end the work in a precision
_FLOOR = 1e-6  # the gap counts against the objective, but not below this share of ½β‖y‖²


def alone(work: Callable[[int, int], None]) -> None:
    """Do the whole of a work that may be shared."""
    work(0, 1)


class Layer:
    """One layer of one sample: its residual ``r_j = x_{j-1} - D_j x_j``, its codes and its working set."""

    def __init__(
        self,
        lines: Lines,
        kernels: Reals,
        weights: Reals,
        start: Reals,
        data: Reals | None,
        beta: float,
        upper: float,
        ring: bool,
    ) -> None:
        """Set up at scale one.

        Args:
            lines: Sizes.
            kernels: ``(atoms, kh, kw·C)``.
            weights: ``(1 or h, 1 or width, atoms)``.
            start: Codes ``(h, width, atoms)``.
            data: The image ``(H, W·C)``, for the first layer.
            beta: β of this layer.
            upper: β of the layer above, or 0.
            ring: Whether kernels wrap around.
        """
        kind = kernels.dtype
        self.lines, self.w, self.ring = lines, weights, ring
        atoms, tall, piece = kernels.shape
        padded = np.zeros((atoms, tall, lines.wide), kind)
        padded[:, :, :piece] = kernels
        self.kernels = padded.reshape(-1)
        blocks = -(-atoms // LANES)
        pack = np.zeros((blocks * LANES, tall * piece), kind)
        pack[:atoms] = kernels.reshape(atoms, -1)
        self.pack = np.ascontiguousarray(pack.reshape(blocks, LANES, -1).transpose(0, 2, 1)).reshape(-1)
        self.beta, self.upper = kind.type(beta), kind.type(upper)
        norms = (kernels.astype(np.float64) ** 2).sum((1, 2))
        self.curvature = (beta * norms + upper).astype(kind)
        self.data = self.image(kind)
        if data is not None:
            self.data.reshape(-1, lines.pitch)[: lines.height, : lines.length] = data
        self.r = self.data.copy()
        self.x = np.zeros(lines.rows * lines.codes, kind)
        self.x.reshape(lines.rows, -1)[:, : lines.width * atoms] = start.reshape(lines.rows, -1)
        self.g = np.zeros_like(self.x)
        self.ratio = np.zeros(lines.rows, kind)
        self.used = (self.x.reshape(lines.rows, -1) != 0).any(1)
        self.starts = np.zeros(lines.rows + 1, np.int64)
        self.collect(math.inf, False)

    def image(self, kind: np.dtype) -> Reals:
        """Return an empty image with its margin, flat."""
        return np.zeros((self.lines.height + self.lines.tall + 1) * self.lines.pitch, kind)

    def collect(self, level: float, nonnegative: bool) -> None:
        """List the entries in use and those above `level`."""
        arguments = self.lines, self.x, self.g, self.w
        lists.count_entries(*arguments, self.ratio, self.used, level, nonnegative, self.starts)
        np.cumsum(self.starts, out=self.starts)
        total = int(self.starts[-1])
        self.at, self.atom, self.place = (np.empty(total, np.int64) for _ in range(3))
        self.values, self.weights = np.empty(total, self.x.dtype), np.empty(total, self.x.dtype)
        lists.list_entries(
            *arguments, level, nonnegative, self.starts, self.at, self.atom, self.place, self.values, self.weights
        )

    def scatter(self) -> None:
        """Write the listed codes back to the code grid."""
        lists.scatter(self.lines, self.x, self.used, self.starts, self.place, self.values)

    def wrap(self) -> None:
        """Fill the margin of the residual with what wraps around."""
        lines, grid = self.r.reshape(-1, self.lines.pitch), self.lines
        ring = np.arange(grid.length, grid.length + grid.wide) % grid.length
        lines[:, grid.length : grid.length + grid.wide] = lines[:, ring]
        lines[grid.height : -1] = lines[np.arange(grid.tall) % grid.height]

    def gradient(self, above: Reals, nonnegative: bool, first: int, last: int) -> None:
        """Compute rows of the gradient's map."""
        if not self.r.any() and not (self.upper and above.any()):  # as long as nothing is in use below
            at = slice(first * self.lines.codes, last * self.lines.codes)
            self.g[at] = 0
            self.ratio[first:last] = 0
            return
        buffer = np.empty((TILE, len(self.pack) // (self.lines.tall * self.lines.piece)), self.x.dtype)
        gradient_rows(
            self.lines, self.r, self.pack, self.beta, self.upper, above, self.w, nonnegative, first, last, self.g,
            self.ratio, buffer
        )  # fmt: skip


class Support:
    """The entries of one layer's working set that are in use."""

    def __init__(self, layer: Layer) -> None:
        self.layer, self.index = layer, layer.values.nonzero()[0]
        self.at, self.atom, self.place = layer.at[self.index], layer.atom[self.index], layer.place[self.index]
        self.x, self.w = layer.values[self.index], layer.weights[self.index]
        self.direction, self.right, self.search, self.product, self.trial, self.excess = (
            np.zeros_like(self.x) for _ in range(6)
        )

    def correlate(self, r: Reals, above: Reals, out: Reals) -> None:
        """Set out to ``β Dᵀr - β' r'``."""
        own = self.layer
        lists.correlate(own.lines, r, above, own.kernels, own.beta, own.upper, self.at, self.atom, self.place, out)

    def subtract(self, r: Reals, above: Reals, values: Reals) -> None:
        """Subtract D x from r and add x to r'."""
        own = self.layer
        lists.subtract(own.lines, r, above, own.kernels, own.upper, self.at, self.atom, self.place, values)


class Work:
    """One sample on its way to its codes."""

    def __init__(self, layers: list[Layer], nonnegative: bool) -> None:
        self.layers, self.nonnegative = layers, nonnegative
        first = layers[0]
        self.energy = 0.5 * float(first.beta) * lists.square(first.lines, first.data)
        self.depth, self.share = _SHALLOW, _ENERGY

    def pairs(self, images: list[Reals]) -> list[tuple[Reals, Reals]]:
        """Return the images with the one above each (the last one with itself, which is then not read)."""
        return list(zip(images, [*images[1:], images[-1]], strict=True))

    @property
    def residuals(self) -> list[Reals]:
        """The residuals of all layers."""
        return [layer.r for layer in self.layers]

    def residual(self) -> None:
        """Compute the residuals anew: what sweeps leave in them carries their rounding."""
        for layer in self.layers:
            layer.r[:] = layer.data
        for layer, (r, above) in zip(self.layers, self.pairs(self.residuals), strict=True):
            lists.subtract(
                layer.lines, r, above, layer.kernels, layer.upper, layer.at, layer.atom, layer.place, layer.values
            )

    def sweeps(self, most: int) -> None:
        """Sweep over the working sets of all layers, from the second time on over what is in use or just moved."""
        orders = [np.arange(len(layer.values)) for layer in self.layers]
        counts = [len(order) for order in orders]
        for _ in range(most):
            moved = False
            pairs = self.pairs(self.residuals)
            for j, layer in enumerate(self.layers):
                r, above = pairs[j]
                kept = lists.sweep(
                    layer.lines, r, above, layer.kernels, layer.curvature, layer.beta, layer.upper, layer.at,
                    layer.atom, layer.place, layer.values, layer.weights, orders[j], counts[j], self.nonnegative
                )  # fmt: skip
                moved = moved or kept > 0
                counts[j] = abs(kept)
            if not moved:
                break

    def newton(self) -> None:
        """Solve the normal equations of all layers' supports by conjugate gradients; go there as far as it pays.

        Entries whose sign would change stop at zero; the step is halved until the objective falls.
        """
        parts = [Support(layer) for layer in self.layers]
        energy = 0.0
        for part, (r, above) in zip(parts, self.pairs(self.residuals), strict=True):
            part.correlate(r, above, part.right)
            energy += lists.slopes(part.right, part.x, part.w, part.layer.curvature, part.atom, part.search)
        if not energy > 0:
            return
        change = [np.zeros_like(r) for r in self.residuals]
        self.conjugate(parts, energy, change)
        before = self.value(self.residuals, [part.x for part in parts], parts)
        length = 1.0
        for _ in range(_TRIALS):
            images = [r + r.dtype.type(length) * c for r, c in zip(self.residuals, change, strict=True)]
            for part, (r, above) in zip(parts, self.pairs(images), strict=True):
                lists.clip_signs(part.x, part.direction, length, part.trial, part.excess)
                part.subtract(r, above, part.excess)
            if self.value(images, [part.trial for part in parts], parts) < before:
                for part, image in zip(parts, images, strict=True):
                    part.layer.values[part.index] = part.trial
                    part.layer.r = image
                break
            length *= 0.5
        rests = length == 1.0 and not any(part.excess.any() for part in parts)
        self.share = max(0.1 * self.share, _LEAST) if rests else _ENERGY
        if length == 1.0:
            self.depth = min(2 * self.depth, _DEEPEST if rests else _DEEP)
        elif length < 0.5:
            self.depth = max(self.depth // 2, _SHALLOW)

    def conjugate(self, parts: list[Support], energy: float, change: list[Reals]) -> None:
        """Run conjugate gradients from zero; `change` becomes ``-A·direction``, layer by layer."""
        shadow = [np.zeros_like(c) for c in change]
        first = energy
        for _ in range(self.depth):
            for image in shadow:
                image[:] = 0
            pairs = self.pairs(shadow)
            for part, (r, above) in zip(parts, pairs, strict=True):
                part.subtract(r, above, part.search)  # -A p
            curvature = 0.0
            for part, (r, above) in zip(parts, pairs, strict=True):
                part.correlate(r, above, part.product)  # -AᵀA p
                curvature -= lists.inner(part.search, part.product)
            if not (curvature > 0 and energy > 0):
                break
            length, before, energy = energy / curvature, energy, 0.0
            for part, c, image in zip(parts, change, shadow, strict=True):
                step = c.dtype.type(length)
                energy += lists.advance(
                    part.direction, part.right, part.search, part.product, part.layer.curvature, part.atom, step
                )
                c += step * image
            if energy <= self.share * first:
                break
            for part in parts:
                share = part.x.dtype.type(energy / before)
                lists.turn(part.search, part.right, part.layer.curvature, part.atom, share)

    def value(self, images: list[Reals], codes: list[Reals], parts: list[Support]) -> float:
        """Return the objective at given residuals and codes of the support."""
        total = 0.0
        for layer, r, x, part in zip(self.layers, images, codes, parts, strict=True):
            total += 0.5 * float(layer.beta) * lists.square(layer.lines, r) + lists.weighted(x, part.w)
        return total

    def gradient(self, spread: Spread) -> float:
        """Compute ``Aᵀr`` of all layers; return the largest ``|g_i|/w_i``."""
        worst = 0.0
        for layer, (_, above) in zip(self.layers, self.pairs(self.residuals), strict=True):
            if layer.ring:
                layer.wrap()
            rows = layer.lines.rows

            def work(i: int, step: int, layer: Layer = layer, above: Reals = above, rows: int = rows) -> None:
                layer.gradient(above, self.nonnegative, i * rows // step, (i + 1) * rows // step)

            spread(work)
            worst = max(worst, float(layer.ratio.max()) if rows else 0.0)
        return worst

    def gap(self, worst: float, inner: float) -> tuple[float, float]:
        """Return the objective and the duality gap, at the dual point θ = αr scaled into ``|a_iᵀθ| <= w_i``."""
        first = self.layers[0]
        ry = float(first.beta) * lists.inner(first.r, first.data)  # data are zero in the margin
        rr = sum(float(layer.beta) * lists.square(layer.lines, layer.r) for layer in self.layers)
        penalty = sum(lists.weighted(layer.values, layer.weights) for layer in self.layers)
        alpha = max(ry / rr, 0.0) if rr > 0 else 0.0
        if alpha * worst > 1:
            alpha = 1 / worst
        return 0.5 * rr + penalty, max(0.5 * (1 - alpha) ** 2 * rr + (penalty - alpha * inner), 0.0)

    def relative(self, objective: float, gap: float) -> float:
        """Return the relative gap."""
        scale = max(objective, _FLOOR * self.energy)
        return gap / scale if scale > 0 else 0.0

    def measure(self, spread: Spread) -> tuple[float, float, float]:
        """Return the largest ``|g_i|/w_i``, the objective and the gap."""
        worst = self.gradient(spread)
        inner = sum(lists.picked(layer.values, layer.place, layer.g) for layer in self.layers)
        objective, gap = self.gap(worst, inner)
        return worst, objective, gap

    def measure_listed(self) -> float:
        """Return the relative gap of the problem that has the working set's entries only."""
        worst = inner = 0.0
        for layer, (r, above) in zip(self.layers, self.pairs(self.residuals), strict=True):
            out = np.empty_like(layer.values)
            lists.correlate(
                layer.lines, r, above, layer.kernels, layer.beta, layer.upper, layer.at, layer.atom, layer.place, out
            )
            worst = max(worst, lists.largest(out, layer.weights, self.nonnegative))
            inner += lists.inner(out, layer.values)
        return self.relative(*self.gap(worst, inner))

    def run(self, tol: float, rounds: int, spread: Spread) -> tuple[int, float]:
        """Return the rounds taken and the last relative gap."""
        bytes_ = self.layers[0].x.itemsize
        slack = _SLACK[bytes_]
        best, lowest, level, idle, done = math.inf, math.inf, math.inf, 0, 0
        self.residual()
        while True:
            worst, objective, absolute = self.measure(spread)
            gap = self.relative(objective, absolute)
            idle = idle + 1 if gap > 0.95 * best and objective > lowest * (1 - _NOISE[bytes_]) else 0
            best, lowest = min(best, gap), min(lowest, objective)
            if gap <= tol or done >= rounds or idle > _IDLE[bytes_]:
                return done, gap
            # The largest ratio rises and falls as layers wait for each other; the threshold only falls.
            level = _FALL * min(worst, level)
            last = level <= 1 + slack
            for layer in self.layers:
                layer.collect(_REACH if last else level, self.nonnegative)
            for _ in range(_PASSES if last else 1):
                self.sweeps(_LAST_SWEEPS if last else _EARLY_SWEEPS)
                self.share = min(self.share, _ENERGY) if last else _EARLY_ENERGY
                self.newton()
                if last and self.measure_listed() <= _INNER * max(tol, _NEXT * gap):
                    break
            for layer in self.layers:
                layer.scatter()
            self.residual()
            done += 1
