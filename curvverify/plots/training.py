"""A training run over its epochs: accuracies, and constants of the network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from curvverify.plots.style import BLUE, GREEN, GREY, ORANGE, RED, new_figure, save

if TYPE_CHECKING:
    from curvverify.train.loop import EpochRow


def training_figure(rows: Sequence[EpochRow], title: str, eps: float, path: Path) -> None:
    """Left: accuracy in training, on validation samples, and certified (estimated); right: curvature and Lipschitz."""
    figure, (left, right) = new_figure(2, 9.5, 3.8)
    epochs = [row.epoch for row in rows]
    curves = (
        ("train", [row.train_accuracy for row in rows], GREY),
        ("validation", [row.validation_accuracy for row in rows], BLUE),
        (f"certified at {eps:g} (estimate)", [row.certified_estimate for row in rows], GREEN),
    )
    for label, values, colour in curves:
        left.plot(epochs, [100.0 * v for v in values], "o-", color=colour, label=label, markersize=3)
    left.set_ylim(0.0, 101.0)
    left.set_xlabel("epoch")
    left.set_ylabel("% of samples")
    left.set_title(title)
    left.legend(frameon=False, fontsize=8)
    right.plot(epochs, [r.curvature_estimate for r in rows], "o-", color=RED, label="curvature", markersize=3)
    right.plot(epochs, [r.lipschitz_estimate for r in rows], "o-", color=ORANGE, label="Lipschitz", markersize=3)
    right.set_yscale("log")
    right.set_xlabel("epoch")
    right.set_title("largest over pairs of classes (estimates)")
    right.legend(frameon=False, fontsize=8)
    save(figure, path)
