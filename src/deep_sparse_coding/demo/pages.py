"""The report of the main job: what each figure shows, and what is proved and what only measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from .. import report as html
from .._drawing import image_png, new_figure, style
from ..dictionaries import Cascade
from ..guarantees import Guarantee
from ..plotting import plot_atoms, plot_bound, plot_codes, plot_convergence, plot_sparsity
from .designed import DesignedResult
from .digits import DigitsResult
from .photograph import PhotographResult
from .results import Results, reach
from .settings import DemoSettings
from .words import count, percent, power, seconds

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def build(results: Results) -> str:
    """Return the report as HTML."""
    photo, designed, digits = results.photograph, results.designed, results.digits
    numbers = photo.summary()
    entries, proved = sum(numbers["entries"]), numbers["posterior"]
    zeros = 1 - sum(numbers["nonzeros"]) / entries
    decided = sum(proved["certain_zeros"] + proved["certain_support"]) / entries
    return html.page(
        title="A photograph, two layers of atoms, and what can be proved about them",
        eyebrow=f"deep_sparse_coding {results.versions['deep_sparse_coding']} · the main job",
        lede=(
            "A photograph is explained by a few atoms, and these atoms by a few of a second layer. This page shows the "
            "codes, says how far they can be trusted before and after solving, compares a plain CNN with the error "
            "bound that is proved for it, and trains small networks whose activations are sparse."
        ),
        numbers=html.stats(
            [
                (f"{photo.psnr(photo.reconstruction):.1f}", "dB", "the reconstruction's signal to noise ratio"),
                (percent(zeros).removesuffix("\u00a0%"), "%", "of all code entries are zero"),
                (power(numbers["relative_gap"]), "", "relative duality gap, certified"),
                (
                    percent(decided).removesuffix("\u00a0%"),
                    "%",
                    "of the entries proved zero or not, after solving",
                ),
                (power(designed.net.error_bound), "", "proved error bound of the compiled CNN"),
                (
                    percent(digits.sparse.zero_fraction, 0).removesuffix("\u00a0%"),
                    "%",
                    f"zero activations with the penalty, {percent(digits.plain.zero_fraction, 0)} without",
                ),
            ]
        ),
        sections=[
            _picture(results),
            _atoms(photo),
            _codes(photo),
            _convergence(photo),
            _proofs(photo, designed),
            _network(designed),
            _digits(digits),
            _made(results),
        ],
        foot=html.text(
            "Photograph: “china.jpg” by danielbuechele on Flickr (CC BY 2.0), and the handwritten digits, both as "
            "they ship with scikit-learn. Statements G1, G2, G5, N1 and N2 are stated and proved in docs/theory.md."
        ),
    )


def _picture(results: Results) -> html.Section:
    photo, settings = results.photograph, results.settings
    numbers = photo.summary()

    def shown(picture: Tensor, alt: str, title: str, caption: str) -> str:
        return html.captioned(html.picture(image_png(picture.clamp(0, 1).numpy(), low=0, high=1), alt), caption, title)

    whole = html.captioned(
        html.raster(_framed(photo, settings), "The whole photograph, gray, a frame around the region that is solved"),
        f"The whole photograph, {photo.photograph.gray.shape[1]} by {photo.photograph.gray.shape[0]} pixels. The atoms "
        f"were learned from {photo.crops} crops outside of the frame; the inside, {settings.side} by {settings.side} "
        "pixels, is new to them.",
    )
    trio = html.row(
        shown(photo.region, "The region of the photograph", "The region.", "As it was taken."),
        shown(
            photo.reconstruction,
            "The region reconstructed from the codes",
            f"{photo.psnr(photo.reconstruction):.1f} dB.",
            f"Its reconstruction from {count(numbers['nonzeros'][0])} non-zeros of layer 1.",
        ),
        shown(
            photo.coarse,
            "The region reconstructed from the codes of layer 2 alone",
            f"{photo.psnr(photo.coarse):.1f} dB.",
            f"What the {count(numbers['nonzeros'][1])} non-zeros of layer 2 alone explain. The local mean without any "
            f"code has {photo.psnr(photo.smooth):.1f} dB.",
        ),
        least="13rem",
        pair=True,
    )
    rows = [
        [
            f"layer {j}",
            count(entries),
            count(nonzeros),
            percent(1 - nonzeros / entries),
            f"{nonzeros / numbers['pixels']:.3f}",
        ]
        for j, (entries, nonzeros) in enumerate(zip(numbers["entries"], numbers["nonzeros"], strict=True), start=1)
    ]
    body = (
        html.text(
            "The photograph is split into its local mean and the detail around it. The detail y is coded: few atoms of "
            "D_1 explain it, and few atoms of D_2 explain their code x_1. Both layers are found at once, as the "
            "solution of one convex problem:"
        )
        + html.formula("minimize  ½ β_1 ‖y − D_1 x_1‖² + ½ β_2 ‖x_1 − D_2 x_2‖² + λ_1 ‖x_1‖_1 + λ_2 ‖x_2‖_1")
        + html.text(
            f"Here λ is {settings.lam[0]:g} and {settings.lam[1]:g}, β is {settings.beta[0]:g} and "
            f"{settings.beta[1]:g}."
        )
        + whole
        + trio
        + html.table(["", "code entries", "non-zeros", "zeros", "non-zeros per pixel"], rows)
    )
    return html.Section("photograph", "The photograph and its reconstruction", body, "Photograph")


def _framed(photo: PhotographResult, settings: DemoSettings) -> Figure:
    """Draw the whole photograph with a frame around the region."""
    gray = photo.photograph.gray.numpy()
    (row, column), side = settings.corner, settings.side
    with style():
        figure = new_figure(7.8, 7.8 * gray.shape[0] / gray.shape[1], constrained=False)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.imshow(gray, cmap="gray", vmin=0, vmax=1, interpolation="bicubic")
        x, y = [column, column + side, column + side, column, column], [row, row, row + side, row + side, row]
        axes.plot(x, y, color="#ffffff", lw=4.5, alpha=0.85)
        axes.plot(x, y, color="#c8641b", lw=2)
        axes.set_axis_off()
        return figure


def _atoms(photo: PhotographResult) -> html.Section:
    model = photo.model
    first, second = model.layers
    history = photo.learning.history
    fall = [1 - values[-1] / values[0] for values in history.objective]
    body = (
        html.text(
            "An atom of layer 1 is a small patch. An atom of layer 2 is a pattern of atoms of layer 1; what it looks "
            "like in the picture is its *effective atom*, a column of D_1D_2. Mid-gray is zero, every tile has its own "
            "contrast.",
        )
        + html.row(
            html.captioned(
                html.raster(plot_atoms(first, columns=8), f"{first.atoms} atoms of layer 1"),
                f"{first.atoms} atoms of {reach(model, 1)[1]} by {reach(model, 1)[1]} pixels: edges, bars and "
                "textures, and blobs for light and shade.",
                "Layer 1, D_1.",
            ),
            html.captioned(
                html.raster(plot_atoms(model.effective(), columns=8), f"{second.atoms} effective atoms of layer 2"),
                f"{second.atoms} effective atoms of {reach(model, 2)[1]} by {reach(model, 2)[1]} pixels: longer edges, "
                "corners and stripes, put together from those on the left.",
                "Layer 2, D_1D_2.",
            ),
            least="19rem",
        )
        + html.note(
            html.MEASURED,
            f"Learned in {seconds(photo.learning_seconds)}, {len(history.objective[0])} and "
            f"{len(history.objective[1])} passes over {photo.crops} crops; from the first pass to the last the "
            f"objective fell by {percent(fall[0])} in layer 1 and by {percent(fall[1])} in layer 2, and "
            f"{sum(map(len, photo.learning.dead_atoms))} atoms stayed unused.",
        )
    )
    return html.Section("atoms", "What was learned", body, "Atoms")


def _codes(photo: PhotographResult) -> html.Section:
    model = photo.model
    parts = []
    for layer, atoms in ((1, model.layers[0].weight.detach()), (2, model.effective())):
        stride, size = reach(model, layer)
        figure = plot_codes(photo.codes[layer - 1][0], photo.region, stride=stride, size=size, maps=6, atoms=atoms)
        parts.append(
            html.captioned(
                html.raster(figure, f"Where six atoms of layer {layer} fire in the region", dpi=150),
                f"The six most active of {len(atoms)} maps, each with its atom in the corner.",
                f"Layer {layer}.",
            )
        )
    body = (
        html.text(
            "A code map says where its atom stands in the picture and how strongly. Dots mark the entries that are not "
            "zero, orange positive, blue negative (the atom with black and white exchanged), their area in "
            "proportion to the entry."
        )
        + parts[0]
        + parts[1]
    )
    return html.Section("codes", "Where the atoms fire", body, "Codes")


def _convergence(photo: PhotographResult) -> html.Section:
    solution = photo.solution
    certificate = solution.certificate
    body = (
        html.text(
            "The duality gap bounds how far the objective is above its minimum, whatever the minimum is. It is "
            "computed in double precision from the very codes that are returned, so it is evidence and not a forecast."
        )
        + html.captioned(
            html.plot(
                plot_convergence(solution),
                "gap",
                "The relative duality gap falls from one to the tolerance, against steps and seconds",
            ),
            f"{solution.solver}, {count(int(solution.steps.max()))} steps in {seconds(photo.solving_seconds)}. The "
            "dashed line is the relative gap that was asked for.",
        )
        + html.note(
            html.PROVED,
            f"The objective of these codes, {float(certificate.objective.max()):.6g}, is at most "
            f"{power(float(certificate.gap.max()))} above the minimum: {power(float(certificate.relative_gap.max()))} "
            "of it.",
        )
    )
    return html.Section("gap", "Solved, with a certificate", body, "Certificate")


def _proofs(photo: PhotographResult, designed: DesignedResult) -> html.Section:
    rows = _coherence_rows("learned", photo.model, photo.stripes, photo.uniqueness)
    rows += _coherence_rows("designed", designed.model, designed.stripes, designed.uniqueness)
    verdicts = [
        ["learned", html.verdict(photo.uniqueness.proved), html.verdict(photo.equivalence.proved)],
        ["designed", html.verdict(designed.uniqueness.proved), html.verdict(designed.equivalence.proved)],
    ]
    after = photo.posterior
    found = []
    for j, (zeros, support) in enumerate(zip(after.zeros, after.support, strict=True), start=1):
        total, zero, active = zeros.numel(), int(zeros.sum()), int(support.sum())
        found.append([f"layer {j}", count(total), count(zero), count(active), count(total - zero - active)])
    norm = photo.summary()["posterior"]["codes_norm"]
    if bool(after.unique.all()):
        told = html.note(
            html.PROVED,
            f"The problem has exactly one minimizer, and the codes are within {power(float(after.distance.max()))} of "
            f"it in ℓ2 norm; their own norm is {norm:.1f}.",
        )
    else:
        told = html.note(html.NOT_PROVED, f"Uniqueness of the minimizer: {after.reasons[0]}.")
    body = (
        html.text(
            "*Before* a signal is seen, uniqueness (G1) and the equality of ℓ0 and ℓ1 (G2) follow from how alike the "
            "atoms are: the Babel function μ_1(2κ\u00a0−\u00a01) must stay below 1, where κ is the most non-zeros of "
            "a code in a stripe, near any one atom. Learned atoms are alike, neighbors overlap, and the codes of a "
            "photograph are not that sparse, so nothing is proved for them; the table says by how much. Atoms "
            "designed to differ pass."
        )
        + html.table(
            [
                "model",
                "layer",
                "coherence μ",
                "non-zeros κ per stripe",
                "κ that G1 covers",
                "μ_1(2κ\u00a0−\u00a01)",
                "must be below",
            ],
            rows,
        )
        + html.table(["model", "G1: the sparse codes are unique", "G2: ℓ1 finds them"], verdicts, "Before solving")
        + html.text(
            "*After* solving, the solution itself proves more (G5). The gap puts the dual solution into a small ball; "
            "atoms that stay below λ all over the ball are zero in every minimizer, and one linear solve on the others "
            "shows which are not. It holds for any dictionary, all rounding errors counted, and it is about this "
            "problem with this picture: no condition on coherence is needed."
        )
        + html.table(
            ["", "code entries", "certainly zero", "certainly not zero", "undecided"],
            found,
            "After solving, learned model",
        )
        + told
    )
    return html.Section("proofs", "What is proved, before and after", body, "Proofs")


def _coherence_rows(
    name: str, model: Cascade, stripes: tuple[int, ...], guarantee: Guarantee
) -> list[list[str | html.Tag]]:
    rows: list[list[str | html.Tag]] = []
    for j, (layer, kappa) in enumerate(zip(model.layers, stripes, strict=True), start=1):
        condition = next(c for c in guarantee.conditions if c.layer == j and c.name.startswith("μ_1("))
        covered = int(guarantee.bounds[f"largest κ proved for layer {j} alone"])
        rows.append(
            [
                name,
                f"D_{j}",
                f"{layer.mutual_coherence():.3f}",
                str(kappa),
                str(covered),
                f"{condition.value:.3g}",
                f"{condition.bound:g}",
            ]
        )
    return rows


def _network(designed: DesignedResult) -> html.Section:
    plan = designed.net.plan
    worst = designed.errors.amax(0)
    ratios = [bound / float(error) for bound, error in zip(designed.bounds, worst, strict=True) if error > 0]
    held = all(bool(error <= bound) for bound, error in zip(designed.bounds, worst, strict=True))
    ratio = f"between {min(ratios):.2f} and {max(ratios):.2f} times the largest error" if ratios else "nowhere exceeded"
    body = (
        html.text(
            "For the designed model the thresholds and the depth of a network follow from the theory (N1, N2): "
            "convolution, bias, ReLU, again and again, nothing trained. The bound holds for *every* signal that "
            f"meets the hypotheses; {len(designed.signals)} signals that do were drawn, and the true error of their "
            "codes was measured after every step."
        )
        + html.captioned(
            html.plot(
                plot_bound(designed.depths, designed.errors, designed.bounds, layers=designed.layers),
                "bound",
                "Error of the network's codes and the proved bound, on a logarithmic scale, against depth",
            ),
            "Small dots are single signals. Layer 2 begins anew: its first estimate is built from the finished codes "
            "of layer 1, whose remaining error it takes for noise.",
        )
        + html.note(
            html.PROVED,
            f"‖codes - truth‖_∞ ≤ {power(designed.net.error_bound)} at the end of {plan.depth} linear layers of at "
            f"most {plan.width} channels with {count(plan.parameters)} parameters, and at no depth a non-zero outside "
            "of the true support.",
        )
        + html.note(
            html.MEASURED,
            f"The bound {'held' if held else 'was violated'} at every depth and is {ratio}; "
            f"{'no code had' if designed.supports_kept else 'some code had'} a non-zero off its support.",
        )
        + html.text("The bound takes for granted:")
        + html.items(plan.hypotheses)
    )
    return html.Section("network", "A plain CNN computes the codes", body, "Network")


def _digits(digits: DigitsResult) -> html.Section:
    plain, sparse = digits.plain, digits.sparse
    rows = [
        [
            "with" if runs.weight else "without",
            f"{100 * runs.mean:.2f} %",
            f"± {100 * runs.spread:.2f} %",
            *(percent(runs.zeros(row.name)) for row in runs.reports[0]),
            percent(runs.zero_fraction),
        ]
        for runs in (plain, sparse)
    ]
    layers = [row.name for row in plain.reports[0]]
    change = f"{100 * (sparse.mean - plain.mean):+.2f}".replace("-", "−")
    body = (
        html.text(
            f"The same small CNN is trained on {count(digits.train)} handwritten digits of 8 by 8 pixels, without and "
            f"with `dsc.ActivationPenalty(net, targets=[torch.nn.ReLU], weight={sparse.weight:g})`: the ℓ1 norm of "
            f"what its ReLU layers put out, added to the loss. Each is trained {len(plain.accuracies)} times from "
            f"other initial weights, and measured on {digits.test} digits that it has not seen. The weight was set by "
            "hand with a look at these digits, so take the figures as an illustration, not as a benchmark."
        )
        + html.captioned(
            html.plot(
                plot_sparsity({"without": plain.reports, "with the penalty": sparse.reports}),
                "zeros",
                "Share of zeros per layer with and without the penalty",
            ),
            "Small dots are single networks, large ones their mean.",
        )
        + html.table(["penalty", "accuracy", "spread", *(f"zeros {name}" for name in layers), "zeros, all"], rows)
        + html.note(
            html.MEASURED,
            f"Zeros rose from {percent(plain.zero_fraction)} to {percent(sparse.zero_fraction)} of all activations; "
            f"accuracy changed by {change} percentage points, where one digit is "
            f"{100 / digits.test:.2f}. Spread is the standard deviation over the networks.",
        )
    )
    return html.Section("digits", "Networks trained to be sparse", body, "Digits")


def _made(results: Results) -> html.Section:
    command = f"dsc demo --preset {results.settings.name} --seed {results.seed}"
    rows: list[list[str | html.Tag]] = [[name, seconds(value)] for name, value in results.seconds.items()]
    rows.append(["in all", seconds(sum(results.seconds.values()))])
    body = (
        html.text(
            "Everything on this page comes from one command; all numbers stand in `summary.json` beside this file. The "
            "same seed, machine and number of threads give the same numbers, times apart."
        )
        + html.listing(command)
        + html.table(["part", "time"], rows)
        + html.text(" · ".join(f"{name} {version}" for name, version in results.versions.items()))
    )
    return html.Section("made", "How this was made", body, "Made")
