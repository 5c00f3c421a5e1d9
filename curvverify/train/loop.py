"""The training loop: seeded, checkpointed, and the same bit for bit whether it was interrupted or not."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, get_args

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from curvverify.errors import UnreadableError, UsageError
from curvverify.train import architectures
from curvverify.train.certificate import certified_estimate
from curvverify.train.data import TrainingData
from curvverify.train.layers import CentredSoftplus, LipschitzBatchNorm, settle
from curvverify.train.live import LiveModule
from curvverify.train.methods import Strength, leaves, method, prepared, set_eps
from curvverify.train.pairs import PairCurvature

WATCHED = 1000
"""Validation samples that are certified after every epoch."""

ITERATIONS = 30
"""Power iterations for the constants reported after an epoch."""

FORMAT = 1


Select = Literal["last", "accuracy", "certified"]
"""Which epoch's weights are the result: the last, or the first with the best value on the validation samples."""


@dataclass(frozen=True)
class TrainOptions:
    """Everything that the result depends on, the data aside.

    Methods train for the radius eps * stretch; what is watched and selected by is eps.
    """

    arch: str
    method: str
    eps: float = 1.58
    weight: float | None = None
    target: float | None = None
    epochs: int = 20
    batch: int = 256
    rate: float = 5e-3
    warm_up: int = 100
    ramp: float = 0.25
    stretch: float = 1.0
    decay: float = 0.0
    average: float | None = None
    beta: float = 5.0
    learn_beta: bool = False
    shift: int = 0
    warp: float = 0.0
    select: Select = "last"
    seed: int = 0

    def __post_init__(self) -> None:
        method(self.method)
        for name, low in (("eps", 0.0), ("epochs", 0), ("batch", 1), ("rate", 0.0), ("stretch", 0.0), ("beta", 1e-3)):
            if not getattr(self, name) > low:
                raise UsageError(f"--{name} must be greater than {low:g}, not {getattr(self, name)}")
        if not 0.0 <= self.ramp <= 1.0:
            raise UsageError(f"--ramp is the share of training in which eps grows: between 0 and 1, not {self.ramp}")
        if not 0.0 <= self.warp < 1.0:
            raise UsageError(f"--warp must lie in [0, 1), not {self.warp}")
        if self.average is not None and not 0.0 <= self.average < 1.0:
            raise UsageError(f"--average must lie in [0, 1), not {self.average}")
        if self.select not in get_args(Select):
            raise UsageError(f"--select {self.select}: choose {', '.join(get_args(Select))}")


@dataclass(frozen=True)
class EpochRow:
    """One line of the log.  Accuracies are shares; what ends in _estimate proves nothing."""

    epoch: int
    loss: float
    train_accuracy: float
    validation_accuracy: float
    certified_estimate: float
    """Of the first validation samples at the run's eps, by the dual with estimated curvature."""
    curvature_estimate: float
    """The largest over pairs of classes."""
    lipschitz_estimate: float
    beta_mean: float
    seconds: float


@dataclass(eq=False)
class Trainer:
    """One run."""

    options: TrainOptions
    data: TrainingData
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    rows: list[EpochRow] = field(default_factory=list)

    def __post_init__(self) -> None:
        o, d = self.options, self.data
        torch.manual_seed(o.seed)
        model = architectures.build(o.arch, d.shape, d.classes, o.beta, o.learn_beta)
        self.model = prepared(o.method, model, o.beta).to(self.device)
        self._meet(self.model)
        self.shadow = copy.deepcopy(self.model)  # its weights are running means
        strength = Strength(o.eps * o.stretch, o.weight, o.target)
        self.objective = method(o.method).objective(self.model, d.shape, d.classes, strength)
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimiser = torch.optim.Adam(parameters, lr=o.rate, betas=(0.9, 0.99), weight_decay=o.decay)
        self.steps_per_epoch = max(len(d.x) // o.batch, 1)
        normalised = any(isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d | LipschitzBatchNorm) for m in model.modules())
        self.average = (0.0 if normalised else 0.998) if o.average is None else o.average
        self.shadow_pairs = PairCurvature(ITERATIONS)
        self.chosen = copy.deepcopy(self.shadow.state_dict())

    @torch.no_grad()
    def _meet(self, model: nn.Module) -> None:
        """Show the model one input, from which layers learn the size of their images."""
        model.eval()
        model(self.data.x[:1].to(self.device))
        model.train()

    @property
    def finished(self) -> bool:
        return len(self.rows) >= self.options.epochs

    @property
    def best_epoch(self) -> int:
        """The epoch that `select` chooses among those so far; 0 before the first."""
        if self.options.select == "last":
            return len(self.rows)
        name = "validation_accuracy" if self.options.select == "accuracy" else "certified_estimate"
        return max(self.rows, key=lambda row: getattr(row, name)).epoch if self.rows else 0

    def run(self, done: Callable[[EpochRow], None], tick: Callable[[int], None]) -> None:
        """Train what is left; `done` is called after every epoch, `tick` with the number of steps so far."""
        while not self.finished:
            started = time.perf_counter()
            epoch = len(self.rows)
            loss, accuracy = self._epoch(epoch, tick)
            row = self._measured(epoch, loss, accuracy, time.perf_counter() - started)
            if not torch.isfinite(torch.tensor(row.loss)):
                raise UsageError(f"the loss is {row.loss} in epoch {row.epoch}: a smaller --rate or --weight may help")
            self.rows.append(row)
            if self.best_epoch == row.epoch:
                self.chosen = copy.deepcopy(self.shadow.state_dict())
            done(row)

    def _epoch(self, epoch: int, tick: Callable[[int], None]) -> tuple[float, float]:
        o, d = self.options, self.data
        order = torch.randperm(len(d.x), generator=torch.Generator().manual_seed(o.seed * 1_000_003 + epoch))
        self.model.train()
        total, right, seen = 0.0, 0, 0
        for k in range(self.steps_per_epoch):
            step = epoch * self.steps_per_epoch + k
            index = order[k * o.batch : (k + 1) * o.batch]
            x, y = d.x[index], d.y[index].to(self.device)
            if o.shift:
                x = shifted(x, o.shift, torch.Generator().manual_seed((o.seed + 1) * 1_000_000_007 + step))
            if o.warp:
                x = warped(x, o.warp, torch.Generator().manual_seed((o.seed + 1) * 1_000_000_009 + step))
            loss = self._step(x.to(self.device), y, step)
            if k % 8 == 0:
                with torch.no_grad():
                    right += int((self.model(x.to(self.device)).argmax(1) == y).sum())
                seen += len(y)
            total += loss
            tick(step + 1)
        return total / self.steps_per_epoch, right / seen

    def _step(self, x: Tensor, y: Tensor, step: int) -> float:
        o = self.options
        share = step / (o.epochs * self.steps_per_epoch)
        if method(o.method).ramped:
            set_eps(self.objective, o.eps * o.stretch * min(1.0, share / o.ramp if o.ramp else 1.0) + 1e-3)
        rate = o.rate * min(1.0, (step + 1) / max(o.warm_up, 1)) * (1.0 - share)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        loss = self.objective(x, y)
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        self._follow(min(self.average, (step + 1) / (step + 10)))
        return float(loss.detach())

    @torch.no_grad()
    def _follow(self, keep: float) -> None:
        """The averaged model takes a step towards the trained one; what is no parameter is copied."""
        for mine, theirs in zip(self.shadow.parameters(), self.model.parameters(), strict=True):
            mine.lerp_(theirs, 1.0 - keep)
        for mine, theirs in zip(self.shadow.buffers(), self.model.buffers(), strict=True):
            if mine.shape == theirs.shape:
                mine.copy_(theirs)

    def trained(self) -> nn.Module:
        """The averaged model of the chosen epoch in evaluation mode, spectral norms made rigorous."""
        model = copy.deepcopy(self.shadow)
        model.load_state_dict(self.chosen)
        model.cpu().eval()
        settle(model)
        return model

    @torch.no_grad()
    def _measured(self, epoch: int, loss: float, accuracy: float, seconds: float) -> EpochRow:
        d = self.data
        model = copy.deepcopy(self.shadow).eval()
        settle(model)
        xs, ys = d.x_validation.to(self.device), d.y_validation.to(self.device)
        right = torch.cat([model(x).argmax(1) for x in xs.split(500)]) == ys
        pairs = self.shadow_pairs(LiveModule(model, d.shape).graph())
        bend, lipschitz = pairs.bend_estimate, pairs.lipschitz_estimate
        flags = [
            certified_estimate(model, x, y, self.options.eps, bend)[1]
            for x, y in zip(xs[:WATCHED].split(500), ys[:WATCHED].split(500), strict=True)
        ]
        betas = [float(m.beta) for m in model.modules() if isinstance(m, CentredSoftplus)]
        return EpochRow(
            epoch + 1,
            loss,
            accuracy,
            float(right.double().mean()),
            float(torch.cat(flags).double().mean()),
            float(bend.max()),
            float(lipschitz.max()),
            sum(betas) / len(betas) if betas else float("nan"),
            seconds,
        )

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Everything that the rest of the run depends on; a reader sees the old file or the new one, never half."""
        state = {
            "format": FORMAT,
            "options": asdict(self.options),
            "data": self._fingerprint(),
            "model": self.model.state_dict(),
            "shadow": self.shadow.state_dict(),
            "chosen": self.chosen,
            "optimiser": self.optimiser.state_dict(),
            "objective": [part.state_dict() for part in leaves(self.objective)],
            "shadow_pairs": self.shadow_pairs.state_dict(),
            "rows": [asdict(row) for row in self.rows],
        }
        beside = path.with_name(path.name + ".part")
        torch.save(state, beside)
        os.replace(beside, path)

    def resume(self, path: Path) -> None:
        """Go on where the checkpoint ends.  UnreadableError, or UsageError where it belongs to another run."""
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
            given = state["options"]
        except Exception as error:  # torch raises many kinds for a file that is none of its own
            raise UnreadableError(f"{path}: not a checkpoint of `curvverify train`: {error}") from error
        mine = asdict(self.options)
        if state["format"] != FORMAT or given != mine or state["data"] != self._fingerprint():
            other = [f"{k}: {given.get(k)} there, {v} here" for k, v in mine.items() if given.get(k) != v]
            raise UsageError(f"{path} belongs to another run ({'; '.join(other) or 'other data'}): name another --out")
        self.model.load_state_dict(state["model"])
        self.shadow.load_state_dict(state["shadow"])
        self.chosen = state["chosen"]
        self.optimiser.load_state_dict(state["optimiser"])
        for part, saved in zip(leaves(self.objective), state["objective"], strict=True):
            part.load_state_dict(saved)
        self.shadow_pairs.load_state_dict(state["shadow_pairs"])
        self.rows[:] = [EpochRow(**row) for row in state["rows"]]

    def _fingerprint(self) -> list[float]:
        return [float(len(self.data.x)), float(self.data.x.double().sum()), float(self.data.y.double().sum())]


def shifted(x: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Images (B, C, H, W) moved by up to `most` pixels each way, zeros coming in."""
    if x.dim() != 4:
        raise UsageError("--shift moves images; these inputs are none")
    B, _, H, W = x.shape
    wide = F.pad(x, (most,) * 4)
    down, right = (torch.randint(0, 2 * most + 1, (B,), generator=generator) for _ in range(2))
    rows, columns = down[:, None] + torch.arange(H), right[:, None] + torch.arange(W)
    return wide[torch.arange(B)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def warped(x: Tensor, most: float, generator: torch.Generator) -> Tensor:
    """Images (B, C, H, W) under random affine maps of the plane: turned, stretched, sheared and moved a little.

    All six entries of a map are uniform, up to `most` off the identity's, in coordinates from -1 to 1 (14 pixels of an
    image of 28); bilinear interpolation, zeros coming in.
    """
    if x.dim() != 4:
        raise UsageError("--warp distorts images; these inputs are none")
    off = 2.0 * torch.rand(len(x), 2, 3, generator=generator) - 1.0
    grid = F.affine_grid(torch.eye(2, 3) + most * off, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid.to(x.dtype), align_corners=False)
