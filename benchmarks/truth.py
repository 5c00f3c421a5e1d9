"""Verdicts and margins on random small networks whose answer is known; ends with 1 where one is wrong.

    .venv/bin/python -m benchmarks.truth --count 1200

The truth does not come from this verifier.  Networks with up to three free inputs: a dense grid, refined around its
lowest points, in float64 by the module itself.  ReLU networks with four to six inputs: mixed-integer programming over
all activation patterns (HiGHS), its optimum evaluated by the module.  Planted: three to eight inputs, an unsafe set
around the output at one random point.  Thresholds lie on either side of the least value, as near as 1e-7 of its range.

Wrong is a verdict against a known point or against the truth, a witness whose value the module does not confirm, and
every proved margin above a value that is attained, whatever the verdict.  A witness below the lowest value of the grid
shows that the grid was too coarse: such instances are counted, not excused.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import curvverify
from benchmarks.truth_networks import Network, random_network
from curvverify import Deadline, Options, Progress, Result
from curvverify.graph import load
from curvverify.spec import Query, parse_query
from curvverify.verification import run as decision

GRID = {1: 20001, 2: 301, 3: 61}
"""Points per free input."""

ZOOMS, LOWEST = 6, 6
"""Refinements of the grid around so many of its lowest points."""

NEAR = (1e-7, 1e-4, 1e-2, 0.1)
"""Distances of a threshold above the least value, as shares of the range of values."""

BELOW = (1e-3, 0.05, 0.2, 0.6)
"""The same below it: there is room for a proof."""

ROUNDING = 1e-9
"""Relative error of the module's float64 values; FLOAT32 that of its float32 ones."""
FLOAT32 = 1e-4

KINDS = ("relu", "dense", "mixed", "residual", "product", "conv", "attention", "norm", "exact", "planted")
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "no attack": {"attack_seconds": 1e-9},
    "activations and directions": {"attack_seconds": 1e-9, "branch_inputs": 0, "coupling_inputs": 0},
    "activations, uncoupled": {"attack_seconds": 1e-9, "branch_inputs": 0, "coupling": False},
    "coupled, inputs": {"attack_seconds": 1e-9, "coupling_inputs": 0},
    "taylor": {"attack_seconds": 1e-9},
}
"""Options; what has the name of a bound method runs with it."""


@dataclass(frozen=True, eq=False)
class Unsafe:
    """min over the disjuncts of max over their rows of a . y + c . x - b; unsafe is where it is at most 0."""

    rows: Tensor
    """(D, R, m + n): y, then x."""
    bound: Tensor
    """(D, R)."""

    def value(self, x: Tensor, y: Tensor) -> Tensor:
        """(N,) for x (N, n) and y (N, m)."""
        terms = torch.einsum("drk,nk->ndr", self.rows, torch.cat([y, x], 1)) - self.bound
        return terms.amax(2).amin(1)

    def raised(self, by: float) -> Unsafe:
        """Every bound moved, so that all values fall by as much."""
        return Unsafe(self.rows, self.bound + by)

    def text(self, outputs: int) -> str:
        """The formula in VNN-LIB."""
        size = self.rows.shape[2]
        names = [f"Y_{i}" for i in range(outputs)] + [f"X_{i}" for i in range(size - outputs)]

        def row(coefficients: list[float], b: float) -> str:
            terms = [f"(* {_decimal(c)} {name})" for c, name in zip(coefficients, names, strict=True) if c]
            return f"(<= (+ {' '.join(terms)} 0.0) {_decimal(b)})"

        pairs = zip(self.rows.tolist(), self.bound.tolist(), strict=True)
        disjuncts = [f"(and {' '.join(row(c, b) for c, b in zip(*pair, strict=True))})" for pair in pairs]
        return f"(assert (or {' '.join(disjuncts)}))"


def _decimal(number: float) -> str:
    return np.format_float_positional(number, trim="0")


@dataclass(frozen=True, eq=False)
class Instance:
    """A question with its answer."""

    kind: str
    network: Network
    lower: Tensor
    upper: Tensor
    unsafe: Unsafe
    point: Tensor
    """(n,): where the least known value is taken."""
    scale: float
    """Size of values, to which errors are relative."""

    def value(self, x: Tensor) -> Tensor:
        """The module's own values in float64."""
        with torch.no_grad():
            return self.unsafe.value(x, deepcopy(self.network.module).double()(x).reshape(len(x), -1))

    @property
    def least(self) -> float:
        return float(self.value(self.point.unsqueeze(0)))

    @property
    def query(self) -> Query:
        """Written as text and read back."""
        n, m = self.network.inputs, self.network.outputs
        lines = [f"(declare-const {v}_{i} Real)" for v, count in (("X", n), ("Y", m)) for i in range(count)]
        for i, (low, high) in enumerate(zip(self.lower.tolist(), self.upper.tolist(), strict=True)):
            lines.append(f"(assert (and (>= X_{i} {_decimal(low)}) (<= X_{i} {_decimal(high)})))")
        return parse_query("\n".join([*lines, self.unsafe.text(m)]))


def instance(number: int) -> Instance:
    """The instance of that number: kinds in turn, either side of the truth in turn."""
    generator = torch.Generator().manual_seed(number)
    kind, turn = KINDS[number % len(KINDS)], number // len(KINDS)
    if kind == "planted":
        return _planted(generator)
    inputs = {"exact": 4 + turn % 3, "conv": 1 + turn % 2}.get(kind, 1 + turn % 3)
    network = random_network("relu" if kind == "exact" else kind, inputs, generator)
    lower, upper = _box(network.inputs, inputs, generator)
    unsafe = _unsafe(network, generator, rows=1 if kind == "exact" else 2)
    point, spread = (_exact if kind == "exact" else _gridded)(network, lower, upper, unsafe)
    found = Instance(kind, network, lower, upper, unsafe, point, max(1.0, spread))
    share = -NEAR[turn // 2 % 4] if turn % 2 else BELOW[turn // 2 % 4]
    return replace(found, unsafe=unsafe.raised(found.least - share * spread))


def _box(inputs: int, free: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Ends that are multiples of 1/16; the other inputs are fixed."""
    centre = torch.randint(-16, 17, (inputs,), generator=generator).double() / 16
    reach = torch.zeros(inputs, dtype=torch.float64)
    chosen = torch.randperm(inputs, generator=generator)[:free]
    reach[chosen] = torch.randint(4, 25, (free,), generator=generator).double() / 16
    return centre - reach, centre + reach


def _unsafe(network: Network, generator: torch.Generator, rows: int) -> Unsafe:
    """One to three disjuncts with so many rows; every third also speaks about the inputs.

    Coefficients are multiples of 1/8.
    """
    m, n = network.outputs, network.inputs
    disjuncts = 1 + int(torch.randint(3, (1,), generator=generator))
    coefficients = torch.randint(-16, 17, (disjuncts, rows, m + n), generator=generator).double() / 8
    coefficients[..., 0] += torch.where(coefficients[..., 0] == 0, 1.0, 0.0)
    if int(torch.randint(3, (1,), generator=generator)):
        coefficients[..., m:] = 0.0
    bound = torch.randint(-8, 9, (disjuncts, rows), generator=generator).double() / 8
    return Unsafe(coefficients, bound)


def _gridded(network: Network, lower: Tensor, upper: Tensor, unsafe: Unsafe) -> tuple[Tensor, float]:
    """The lowest point of a grid that is refined around its lowest ones, and the range of the values."""
    free = (lower < upper).nonzero().flatten()
    module = deepcopy(network.module).double()

    def values(x: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cat([unsafe.value(part, module(part).reshape(len(part), -1)) for part in x.split(20000)])

    def spread_out(low: Tensor, high: Tensor, count: int) -> Tensor:
        axes = [torch.linspace(float(low[i]), float(high[i]), count, dtype=torch.float64) for i in free]
        x = low.repeat(count ** len(free), 1)
        x[:, free] = torch.cartesian_prod(*axes).reshape(-1, len(free))
        return x

    count = GRID[len(free)]
    x = spread_out(lower, upper, count)
    v = values(x)
    spread = float(v.max() - v.min())
    step = (upper - lower) / (count - 1)
    finer = {1: 41, 2: 21, 3: 11}[len(free)]
    best = [(float(v[i]), x[i]) for i in v.argsort()[:: max(1, count // 200)][:LOWEST]]
    for _ in range(ZOOMS):
        for k, (least, centre) in enumerate(best):
            near = spread_out((centre - step).maximum(lower), (centre + step).minimum(upper), finer)
            w = values(near)
            if float(w.min()) < least:
                best[k] = float(w.min()), near[w.argmin()]
        step = 2.0 * step / (finer - 1)
    return min(best, key=lambda pair: pair[0])[1], spread


def _exact(network: Network, lower: Tensor, upper: Tensor, unsafe: Unsafe) -> tuple[Tensor, float]:
    """The minimum over all activation patterns of a ReLU network, one program per disjunct (of one row)."""
    from benchmarks.truth_exact import least_of_row

    layers = [(layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy())
              for layer in network.module.layers]  # type: ignore[union-attr]  # fmt: skip
    points = []
    for row in unsafe.rows[:, 0]:
        found = least_of_row(layers, lower.numpy(), upper.numpy(), row.numpy())
        points.append(torch.from_numpy(found).maximum(lower).minimum(upper))
    x = torch.stack(points)
    some = lower + torch.rand(2000, len(lower), generator=torch.Generator().manual_seed(0)).double() * (upper - lower)
    with torch.no_grad():
        module = deepcopy(network.module).double()
        values, others = unsafe.value(x, module(x)), unsafe.value(some, module(some))
    return x[values.argmin()], float(others.max() - values.min())


def _planted(generator: torch.Generator) -> Instance:
    """An unsafe set of a few thousandths of the outputs' size around the output at a random point."""
    kind = ("dense", "mixed", "residual", "relu")[int(torch.randint(4, (1,), generator=generator))]
    inputs = 3 + int(torch.randint(6, (1,), generator=generator))
    network = random_network(kind, inputs, generator)
    lower, upper = _box(inputs, inputs, generator)
    point = lower + torch.rand(inputs, generator=generator).double() * (upper - lower)
    point = point.float().double()
    with torch.no_grad():
        y = deepcopy(network.module).double()(point.unsqueeze(0))[0]
    size = float(y.abs().max())
    reach = (0.002 + 0.02 * float(torch.rand(1, generator=generator))) * (0.1 + size)
    eye = torch.eye(network.outputs, network.outputs + inputs, dtype=torch.float64)
    unsafe = Unsafe(torch.cat([eye, -eye]).unsqueeze(0), torch.cat([y + reach, reach - y]).unsqueeze(0))
    return Instance("planted", network, lower, upper, unsafe, point, max(1.0, size))


@dataclass(frozen=True)
class Outcome:
    """One run."""

    number: int
    kind: str
    setting: str
    truth: str
    verdict: str
    seconds: float
    wrong: str = ""
    coarse: bool = False


def run(number: int, seconds: float) -> Outcome:
    """Ask the verifier, and hold what it says against the truth."""
    asked = instance(number)
    setting = list(SETTINGS)[number // len(KINDS) // 2 % len(SETTINGS)]
    truth = "sat" if asked.least <= 0.0 else "unsat"
    options = Options(timeout=600.0, threads=1, attack_rounds=2, seed=number, **SETTINGS[setting])
    model = load(asked.network.module, shapes=(1, asked.network.inputs))
    deadline, begun = Deadline.after(600.0), time.process_time()

    def stop(_: Progress) -> None:
        if time.process_time() - begun > seconds:
            deadline.cancel()

    method = "taylor" if setting == "taylor" else None
    result = curvverify.verify(model, asked.query, options, method=method, deadline=deadline, progress=stop)
    spent = time.process_time() - begun
    wrong, coarse = judged(asked, truth, result)
    return Outcome(number, asked.kind, setting, truth, str(result.verdict), spent, wrong, coarse)


def judged(asked: Instance, truth: str, result: Result) -> tuple[str, bool]:
    """What is wrong with the result (nothing: empty), and whether it shows a point that the grid has missed."""
    least, slack = asked.least, ROUNDING * asked.scale
    coarse = False
    if result.witness is not None:
        x = torch.tensor([result.witness.x], dtype=torch.float64)
        if bool(((x < asked.lower) | (x > asked.upper)).any()):
            return "the witness is outside of the box", False
        value = float(asked.value(x))
        if value > FLOAT32 * asked.scale:
            return f"the witness has the value {value:.3g}", False
        coarse = truth == "unsat" and value < least - FLOAT32 * asked.scale
        if truth == "unsat" and not coarse:
            return f"sat, but the least value is {least:.3g}", False
        least = min(least, value)
    if result.verdict == "unsat" and least <= 0.0:
        return f"unsat, but the value {least:.3g} is attained", coarse
    if not result.margin_lower <= least + slack:
        return f"a margin of {result.margin_lower:.9g} is proved, but the value {least:.9g} is attained", coarse
    return "", coarse


COLUMNS = ("instances", "truth sat", "found", "truth unsat", "proved", "open", "coarse", "wrong", "median CPU s")


def table(outcomes: Iterable[Outcome], by: Callable[[Outcome], str], title: str) -> Table:
    """Counts per group, and of all."""
    groups: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        groups[by(outcome)].append(outcome)
        groups["all"].append(outcome)
    groups["all"] = groups.pop("all")
    found = Table(title=title)
    found.add_column("")
    for column in COLUMNS:
        found.add_column(column, justify="right")
    for name, members in groups.items():
        sat, unsat = ([o for o in members if o.truth == truth] for truth in ("sat", "unsat"))
        right = [sum(o.verdict == o.truth for o in part) for part in (sat, unsat)]
        left = sum(o.verdict not in ("sat", "unsat") for o in members)
        bad = sum(bool(o.wrong) for o in members)
        median = float(np.median([o.seconds for o in members]))
        counts = (len(members), len(sat), right[0], len(unsat), right[1], left, sum(o.coarse for o in members), bad)
        found.add_row(name, *map(str, counts), f"{median:.2f}")
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1200)
    parser.add_argument("--begin", type=int, default=0, help="number of the first instance")
    parser.add_argument("--seconds", type=float, default=0.4, help="CPU time per instance, checked ten times a second")
    parser.add_argument("--json", type=Path, metavar="FILE", help="one line per instance")
    chosen = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    console, outcomes = Console(stderr=True), list[Outcome]()
    lines = contextlib.nullcontext() if chosen.json is None else chosen.json.open("w", encoding="utf-8", buffering=1)
    soon = mock.patch.object(decision, "AFTER", 0.0)  # what comes late otherwise, in instances of less than a second
    with soon, lines as stream:
        for number in range(chosen.begin, chosen.begin + chosen.count):
            outcome = run(number, chosen.seconds)
            outcomes.append(outcome)
            if stream is not None:
                stream.write(json.dumps(vars(outcome)) + "\n")
            if outcome.wrong:
                console.print(f"WRONG: {number} {outcome.kind}, {outcome.setting}: {outcome.wrong}", style="bold red")
            if len(outcomes) % 100 == 0:
                console.print(f"{len(outcomes)} of {chosen.count}")
    out = Console(width=120)
    out.print(table(outcomes, lambda o: o.kind, "by kind of network"))
    out.print(table(outcomes, lambda o: o.setting, "by setting"))
    return 1 if any(o.wrong for o in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
