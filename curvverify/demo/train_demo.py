"""How moons.onnx came about: `python -m curvverify.demo.train_demo [FILE]`, half a minute, the same file every time.

A residual network 2 -> 12 -> 12 -> 2 on the two-moons task:

    h = tanh(W0 x + b0)                first layer
    g = h + W2 softplus(W1 h + b1)     one residual block: the branches share h
    y = W3 g + b3                      one score per class
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from curvverify.demo import MODEL
from curvverify.demo.moons import moons

WIDTH = 12
STEPS = 1000
SAMPLES = 1000
DECAY = 0.3


class Residual(nn.Module):
    """The network above."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(2, WIDTH)
        self.inner = nn.Linear(WIDTH, WIDTH)
        self.outer = nn.Linear(WIDTH, WIDTH, bias=False)
        self.head = nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.stem(x))
        return self.head(h + self.outer(nn.functional.softplus(self.inner(h))))


def train() -> Residual:
    """Full-batch AdamW on cross-entropy, in float64 on one thread, so that every machine finds the same weights."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    points, labels = moons(SAMPLES, seed=1)
    x, y = torch.from_numpy(points), torch.from_numpy(labels)
    model = Residual().double()
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, STEPS)
    for _ in range(STEPS):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimiser.step()
        schedule.step()
    return model


def to_onnx(model: Residual) -> onnx.ModelProto:
    """The network as ONNX in float32, weights rounded to six decimals: the last bits of training do not show."""
    weights: list[TensorProto] = []

    def gemm(name: str, layer: nn.Linear, source: str, target: str) -> onnx.NodeProto:
        inputs = [source]
        for suffix, tensor in (("weight", layer.weight), ("bias", layer.bias)):
            if tensor is not None:
                value: NDArray[np.float32] = np.round(tensor.detach().numpy(), 6).astype(np.float32)
                weights.append(numpy_helper.from_array(value, f"{name}.{suffix}"))
                inputs.append(f"{name}.{suffix}")
        return helper.make_node("Gemm", inputs, [target], name=name, transB=1)

    nodes = [
        gemm("stem", model.stem, "X", "z0"),
        helper.make_node("Tanh", ["z0"], ["h"], name="tanh"),
        gemm("inner", model.inner, "h", "z1"),
        helper.make_node("Softplus", ["z1"], ["s"], name="softplus"),
        gemm("outer", model.outer, "s", "r"),
        helper.make_node("Add", ["h", "r"], ["g"], name="join"),
        gemm("head", model.head, "g", "Y"),
    ]
    graph = helper.make_graph(
        nodes,
        "two moons",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, [1, 2])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, [1, 2])],
        weights,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], producer_name="curvverify demo")
    proto.ir_version = 8
    onnx.checker.check_model(proto, full_check=True)
    return proto


def main(path: Path = MODEL) -> None:
    """Train, say how well it does on fresh points, and write the file."""
    model = train()
    points, labels = moons(4 * SAMPLES, seed=2)
    correct = model(torch.from_numpy(points)).argmax(1).numpy() == labels
    onnx.save(to_onnx(model), path)
    sys.stdout.write(f"{path}: {100 * correct.mean():.1f} % of fresh points classified correctly\n")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
