"""Training methods side by side: the same network and budget, evaluated on test samples.

    .venv/bin/python benchmarks/methods.py mnist ../shared/data/mnist.npz out/    # 784-128-10, l2 radius 0.5
    .venv/bin/python benchmarks/methods.py cifar ../shared/data/cifar10_subset.npz out/  # a small residual network

The networks stay in the last folder, with the log of every epoch beside them.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from curvverify.graph import load
from curvverify.report.evaluation import evaluation_table
from curvverify.report.serialise import plain
from curvverify.report.training import csv_text
from curvverify.spec.dataset import checked_samples, read_split
from curvverify.train import save_onnx
from curvverify.train.data import read_training
from curvverify.train.evaluate import evaluate
from curvverify.train.loop import Trainer, TrainOptions

MNIST = {
    "standard": {},
    "crt": {"weight": 0.01},
    "ccb": {"weight": 0.003},
    "lcnn": {"weight": 0.01, "learn_beta": True},
    "certificate": {"stretch": 1.1},
}
CIFAR = {
    "standard": {"average": 0.0},
    "gnr": {"weight": 1e-2},
    "ccb": {"weight": 1e-8},
    "crt": {"weight": 1e-8},
    "lcnn": {"weight": 1e-2},
    "lcnn-gradient": {"weight": 1e-2},
}


def tasks(name: str) -> tuple[str, dict[str, dict[str, object]], dict[str, object], float, float, int]:
    """(architecture, methods, options, l2 radius, linf radius, test samples)."""
    if name == "mnist":
        return "mlp-2x128", MNIST, {"epochs": 5, "rate": 5e-3}, 0.5, 0.05, 500
    return "resnet8", CIFAR, {"epochs": 8, "rate": 5e-3, "batch": 64, "beta": 10.0}, 0.1, 2 / 255, 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=["mnist", "cifar"])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--methods", nargs="*")
    parser.add_argument("--epochs", type=int, help="instead of the task's own number")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    arch, methods, common, eps, linf, count = tasks(arguments.task)
    common["epochs"] = arguments.epochs or common["epochs"]
    data = read_training(arguments.data, 1000)
    x, y = read_split(arguments.data, "test")
    found = []
    for method in arguments.methods or methods:
        options = TrainOptions(arch, method, eps=eps, **{**common, **methods[method]})  # type: ignore[arg-type]
        trainer, cpu = Trainer(options, data), time.process_time()
        trainer.run(lambda row: print(row, flush=True), lambda _: None)  # noqa: T201
        cpu = (time.process_time() - cpu) / options.epochs
        path = arguments.out / f"{arguments.task}-{method}.onnx"
        save_onnx(trainer.trained(), data.shape, path)
        path.with_suffix(".csv").write_text(csv_text(trainer.rows))
        loaded = load(path)
        size = loaded.graph.nodes[0].size
        samples = checked_samples(x[:count], y[:count], size, data.classes, (0.0, 1.0), shape=loaded.graph.input_shape)
        radii = (eps,) if arguments.task == "mnist" else ()
        found.append(evaluate(loaded, samples, radii, linf, (0.0, 1.0)))
        print(json.dumps({"cpu_per_epoch": cpu, **plain(asdict(found[-1]))}), flush=True)  # noqa: T201
    Console(width=140).print(evaluation_table(found))


if __name__ == "__main__":
    main()
