"""The paper's experiments on segmentation with a U-Net: sparsity of its features, masks, and measures.

DUT-OMRON is the paper's set; CamVid has the same two-class task with what moves (car, pedestrian, cyclist) against the
rest, and a task with 11 classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .data import draw_camvid, draw_dut_omron, hold_out, read_camvid, read_dut_omron
from .experiment import Experiment, Measure, Part, Run
from .store import Record
from .training.matched import matched_differences
from .training.parts import Splits, choices, chosen_by_validation, folder_of, once, penalty_of, train_part
from .training.pictures import IOU, LOSS, PENALTY, ZEROS, draw_curves, draw_layers, draw_masks, draw_tradeoff
from .training.settings import TrainSettings, require_word

DATA = ("camvid", "camvid-moving", "dut-omron")
_CAMVID = "CamVid: a folder with train, val and test Parquet files"
_OMRON = "DUT-OMRON: the folder with DUT-OMRON-image and pixelwiseGT-new-PNG"
# DUT-OMRON has no split of its own: a fifth is kept for the test, drawn once and for all.
_SPLIT_SEED = 0


@dataclass(frozen=True)
class SegmentationConfig:
    """How U-Nets are compared.

    Attributes:
        data: "camvid" (11 classes), "camvid-moving" (two) or "dut-omron" (two).
        penalties: What is compared, in words: "none", "0.05", "0.05 late", "target=0.8"; "none" first.
        activation: Of the network, by name.
        width: Factor on the number of features.
        height: Of the images, in pixels.
        across: Their width in pixels.
        batch_norm: Whether batch norm follows each convolution.
        masks: Test images whose masks are kept.
        drawn: Train on a drawn stand-in instead of data; for a look at the whole in seconds.
        train: How networks are trained.
    """

    data: str = "dut-omron"
    penalties: tuple[str, ...] = ("none", "0.05", "0.05 late")
    activation: str = "relu"
    width: float = 1.0
    height: int = 224
    across: int = 224
    batch_norm: bool = True
    masks: int = 4
    drawn: bool = False
    train: TrainSettings = field(default_factory=TrainSettings)

    def __post_init__(self) -> None:
        require_word("data", self.data, DATA)


def run_segmentation(config: SegmentationConfig, run: Run) -> Mapping[str, Any]:
    """Train a U-Net with every penalty and seed.

    Returns:
        "runs"; "chosen", the penalty that validation prefers; "matched", see `matched_differences`.

    Raises:
        DSCError: No data or other than the config names, or a setting out of range.
    """
    every = choices(("unet",), (config.activation,), config.penalties)
    for choice in every.values():
        penalty_of(choice.penalty)  # says what is wrong before any work
    read = once(lambda: _read(config, run))

    def make(part: Part) -> Mapping[str, Any]:
        return train_part(
            part,
            every[part.setting],
            read(),
            "segmentation",
            config.train,
            width=config.width,
            batch_norm=config.batch_norm,
            masks=config.masks,
        )

    parts = run.each(every, make)
    return {
        "runs": parts,
        "chosen": chosen_by_validation(parts, every, "validation_mean_iou"),
        "matched": matched_differences(parts, every, "test_mean_iou"),
    }


def _read(config: SegmentationConfig, run: Run) -> Splits:
    size = (config.height, config.across)
    omron, whole = config.data == "dut-omron", not config.drawn
    if config.drawn:
        folder = run.folder / "drawn"
        if omron:
            draw_dut_omron(folder, count=40, size=size)
        else:
            draw_camvid(folder, train=24, val=8, test=8, size=size)
    else:
        folder = folder_of(run, _OMRON if omron else _CAMVID)
    run.say(f"reading {folder}")
    if omron:
        every = read_dut_omron(folder, size, complete=whole)
        rest, test = hold_out(every, len(every) // 5, _SPLIT_SEED)
        train, validation = hold_out(rest, len(rest) // 8, _SPLIT_SEED)
        return Splits(train, validation, test)
    task = "moving" if config.data == "camvid-moving" else "classes"
    splits = [read_camvid(folder, split, size=size, task=task, complete=whole) for split in ("train", "val", "test")]
    return Splits(*splits)


def _settings(config: SegmentationConfig) -> tuple[str, ...]:
    return tuple(choices(("unet",), (config.activation,), config.penalties))


_IOU = (
    Measure("test_mean_iou", "mean IoU, test, %", better="higher"),
    Measure("validation_mean_iou", "mean IoU, validation, %", better="higher"),
    Measure("test_pixel_accuracy", "pixel accuracy, test, %", better="higher"),
    Measure("test_zeros", "zeros, test, %", digits=1, better="higher"),
)
_MAPS = (
    Measure("test_mae", "MAE", digits=4, better="lower"),
    Measure("test_max_f", "max F", digits=4, better="higher"),
    Measure("test_weighted_f", "weighted F", digits=4, better="higher"),
    Measure("test_max_e", "max E", digits=4, better="higher"),
    Measure("test_s", "S", digits=4, better="higher"),
    Measure("test_mean_iou", "mean IoU, %", better="higher"),
    Measure("test_zeros", "zeros, %", digits=1, better="higher"),
)
_TRAIN = TrainSettings(
    epochs=30, batch=8, optimizer="adamw", lr=2e-3, weight_decay=1e-2, augmentation="flip", accelerator="cpu", threads=2
)
_CPU = SegmentationConfig(
    data="camvid-moving",
    penalties=("none", "0.01", "0.05", "0.05 late", "target=0.8"),
    width=0.25,
    height=96,
    across=128,
    train=_TRAIN,
)
_SMOKE = SegmentationConfig(
    width=0.0625,
    height=32,
    across=48,
    masks=2,
    drawn=True,
    train=replace(_TRAIN, epochs=2, batch=8, threads=1),
)
_FULL = SegmentationConfig(
    penalties=("none", "0.01", "0.05", "0.05 late", "target=0.8"),
    train=replace(
        _TRAIN,
        epochs=100,
        batch=16,
        lr=1e-3,
        augmentation="crop-flip",
        precision="bf16-mixed",
        accelerator="auto",
        threads=0,
    ),
)

Draw = Callable[[Record, Path], list[Path]]


def _experiment(
    name: str,
    title: str,
    source: str,
    draw: Draw,
    *,
    measures: tuple[Measure, ...] = _MAPS,
    smoke: SegmentationConfig = _SMOKE,
    cpu: SegmentationConfig = _CPU,
    full: SegmentationConfig = _FULL,
    needs: str = f"{_OMRON}; with preset cpu {_CAMVID}",
    shows: Mapping[str, str] | None = None,
) -> Experiment:
    presets = {"smoke": smoke, "cpu": cpu, "full": full}
    return Experiment(
        name, title, source, presets, run_segmentation, draw, measures, _settings, shows=shows or {}, needs_data=needs
    )


def _draw_unet(record: Record, folder: Path) -> list[Path]:
    panels = [("zeros, validation, %", ZEROS), ("training loss", LOSS), ("penalty Σ ω ‖x‖₁", PENALTY)]
    return [
        draw_curves(record, folder, "sparsity", panels),
        draw_masks(record, folder, 2),
        draw_layers(record, folder),
        draw_tradeoff(record, folder, "test_mean_iou", "mean IoU, test, %"),
    ]


def _draw_classes(record: Record, folder: Path) -> list[Path]:
    panels = [("mean IoU, validation, %", IOU), ("zeros, validation, %", ZEROS)]
    return [
        draw_curves(record, folder, "mean-iou", panels),
        draw_masks(record, folder, 11),
        draw_tradeoff(record, folder, "test_mean_iou", "mean IoU, test, %"),
    ]


SEGMENTATION: tuple[Experiment, ...] = (
    _experiment(
        "unet-sparsity",
        "sparsity of a U-Net's features, its masks and their measures, two classes",
        "Figures 5, 6 and 7",
        _draw_unet,
        shows={
            "Figure 5": "average sparsity of the features of a U-Net during training",
            "Figure 6": "predicted masks",
            "Figure 7 (U-Net)": "sparsity layer by layer",
            "Table: segmentation measures": "MAE, F, E and S without a penalty and with it",
        },
    ),
    _experiment(
        "unet-classes",
        "mean IoU of a U-Net on the 11 classes of CamVid",
        "Table: segmentation of CamVid",
        _draw_classes,
        measures=_IOU,
        smoke=replace(_SMOKE, data="camvid"),
        cpu=replace(_CPU, data="camvid"),
        full=replace(_FULL, data="camvid", height=352, across=480),
        needs=_CAMVID,
    ),
)
