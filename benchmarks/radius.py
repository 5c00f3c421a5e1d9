"""Certified radii and robust accuracy on the published networks, beside the reference values.

    .venv/bin/python benchmarks/radius.py crc ../shared --limit 10000        # accuracy at the published radii
    .venv/bin/python benchmarks/radius.py large ../shared --limit 1000       # at 2.0 and 2.5
    .venv/bin/python benchmarks/radius.py plain ../shared --limit 10000      # the published dual: ball only
    .venv/bin/python benchmarks/radius.py radii ../shared --limit 10000      # the largest radius of every image
    .venv/bin/python benchmarks/radius.py deep ../shared --limit 2000 --few 5     # mean radii, eight tanh networks
    .venv/bin/python benchmarks/radius.py deep ../shared --nets NET.onnx          # of another MNIST network

The folder is the one that holds models/ and data/mnist.npz.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import curvverify
from curvverify.certificates.record import SampleRadius

CRC = "crc_mnist_2x1024_softplus"
TANH = ("3F", "3F-reg", "4F", "4F-reg", "5F", "5F-reg", "6F", "6F-reg")
REFERENCE = {"3F": (0.0659, 0.0317), "4F": (0.0172, 0.0089), "3F-reg": (0.0118, 0.0053), "4F-reg": (0.0012, 0.0006)}
"""Mean certified radii over 2,000 images: curvature, Lipschitz (REFERENCE.md)."""

RADII = {"crc": (0.1, 0.5, 1.0, 1.58), "large": (2.0, 2.5), "plain": (0.5, 1.0, 1.58)}


def images(folder: Path, limit: int) -> tuple[np.ndarray, np.ndarray]:
    with np.load(folder / "data" / "mnist.npz") as data:
        return data["x_test"][:limit].reshape(-1, 784), data["y_test"][:limit]


def accuracy(folder: Path, limit: int, task: str, console: Console) -> dict[str, object]:
    """Certified and attacked accuracy at the task's radii."""
    x, y = images(folder, limit)
    eps = RADII[task]
    domain = None if task == "plain" else (0.0, 1.0)
    report = curvverify.certified_radius(folder / "models" / f"{CRC}.onnx", x, y, eps=eps, domain=domain)
    spent = sum(s.seconds for s in report.samples)
    table = Table(title=f"{task}: {len(y)} images, clean {100 * report.clean_accuracy:.2f} %, {spent:.0f} s")
    for name in ("radius", "Lipschitz", "closed form", "certified", "attacked", "undecided", "attack certificate"):
        table.add_column(name, justify="right")
    rows = []
    for e in eps:
        shares = (
            np.mean([s.radius_lipschitz >= e for s in report.samples]),
            np.mean([max(s.radius_lipschitz, s.radius_taylor) >= e for s in report.samples]),
            report.certified_accuracy(e),
            report.attacked_accuracy(e),
        )
        undecided = sum(s.decided(e) is None for s in report.samples)
        certain = np.mean([s.label == s.predicted and s.attack_certificate <= e for s in report.samples])
        cells = [f"{100 * share:.2f}" for share in shares]
        table.add_row(f"{e:g}", *cells, str(undecided), f"{100 * certain:.2f}")
        rows.append({"eps": e, "shares": [float(s) for s in shares], "undecided": undecided, "certain": float(certain)})
    console.print(table)
    return {"task": task, "images": len(y), "clean": report.clean_accuracy, "seconds": spent, "rows": rows}


def largest(folder: Path, limit: int, console: Console) -> dict[str, object]:
    """Mean radii by method, and how many are exact; every radius attacked."""
    x, y = images(folder, limit)
    report = curvverify.certified_radius(folder / "models" / f"{CRC}.onnx", x, y, attack=True)
    right = [s for s in report.samples if s.label == s.predicted]
    wrong = sum(s.radius_attacked < s.radius_certified for s in report.samples)
    found: dict[str, object] = {
        "images": len(y),
        "mean over correct ones: lipschitz": statistics.fmean(s.radius_lipschitz for s in right),
        "taylor": statistics.fmean(s.radius_taylor for s in right),
        "certified": statistics.fmean(s.radius_certified for s in right),
        "attacked": statistics.fmean(s.radius_attacked for s in right),
        "exact": sum(s.exact for s in right) / len(right),
        "seconds per image": statistics.fmean(s.seconds for s in report.samples),
        "contradictions": wrong,
    }
    _print(console, "largest radii", found)
    return found


def deep(folder: Path, limit: int, few: int, names: list[str], console: Console) -> dict[str, object]:
    """Mean radii by method: closed forms with global constants on many images, bounds over the ball on a few."""
    x, y = images(folder, limit)
    table = Table(title=f"mean l2 radii; {limit} images for the first two, {few} for the rest")
    closed_forms = ("net", "reference L / K", "Lipschitz", "Taylor")
    for title in (*closed_forms, "Taylor", "linear", "s", "high", "s", "attacked", "by"):
        table.add_column(title, justify="right")
    rows: dict[str, object] = {}
    for name in names:
        path = Path(name) if name.endswith(".onnx") else folder / "models" / f"ccb_mnist_{name}_tanh.onnx"
        closed = curvverify.certified_radius(path, x, y, effort="fast").samples
        means = [_mean(closed, "radius_lipschitz"), _mean(closed, "radius_taylor")]
        if few:
            normal, high = (
                curvverify.certified_radius(path, x[:few], y[:few], effort=e, attack=True).samples
                for e in ("normal", "high")
            )
            means.append(_mean(normal, "radius_taylor"))
            means += [_mean(found, f) for found in (normal, high) for f in ("radius_certified", "seconds")]
            means.append(min(_mean(found, "radius_attacked") for found in (normal, high)))
        cells = [f"{m:.4g}" for m in means]
        if few:
            assert all(s.radius_certified <= s.radius_attacked for s in (*normal, *high))
            cells.append(", ".join(f"{method} {n}" for method, n in Counter(s.method for s in high).most_common()))
        reference = REFERENCE.get(name)
        table.add_row(path.stem, "-" if reference is None else f"{reference[1]} / {reference[0]}", *cells)
        rows[path.stem] = means
        console.print(path.stem, *cells, markup=False)
    console.print(table)
    return rows


def _mean(samples: Sequence[SampleRadius], field: str) -> float:
    return statistics.fmean(getattr(s, field) for s in samples)


def _print(console: Console, title: str, values: dict[str, object]) -> None:
    table = Table(title=title)
    table.add_column("")
    table.add_column("", justify="right")
    for name, value in values.items():
        table.add_row(name, f"{value:.5g}" if isinstance(value, float) and math.isfinite(value) else str(value))
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["crc", "large", "plain", "radii", "deep"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--limit", type=int, default=1000)
    parser.add_argument("--few", type=int, default=5)
    parser.add_argument("--nets", nargs="+", default=list(TANH))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    console = Console(highlight=False, width=140)
    if arguments.task == "deep":
        found: object = deep(arguments.folder, arguments.limit, arguments.few, arguments.nets, console)
    elif arguments.task == "radii":
        found = largest(arguments.folder, arguments.limit, console)
    else:
        found = accuracy(arguments.folder, arguments.limit, arguments.task, console)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
