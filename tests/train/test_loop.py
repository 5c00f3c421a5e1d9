"""Runs: killed and resumed, seeded, refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from curvverify.errors import UnreadableError, UsageError
from curvverify.train.data import read_training
from curvverify.train.export import to_onnx
from curvverify.train.loop import EpochRow, Trainer, TrainOptions, warped
from curvverify.train.methods import METHODS


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two blurred stripes and noise, 8 x 8 bytes, three classes."""
    random = np.random.default_rng(0)
    y = random.integers(0, 3, 240)
    x = random.integers(0, 90, (240, 8, 8))
    for k in range(240):
        x[k, :, 2 * y[k] : 2 * y[k] + 2] += 120
    path = tmp_path_factory.mktemp("data") / "stripes.npz"
    np.savez(path, x_train=x.astype(np.uint8), y_train=y)
    return path


def options(method: str, arch: str = "mlp-2x16", epochs: int = 4, **more: object) -> TrainOptions:
    return TrainOptions(arch, method, eps=0.5, epochs=epochs, batch=40, warm_up=5, **more)  # type: ignore[arg-type]


def quiet(_: object) -> None:
    pass


def run(trainer: Trainer) -> bytes:
    trainer.run(quiet, quiet)
    return to_onnx(trainer.trained(), trainer.data.shape).SerializeToString()


def without_times(rows: list[EpochRow]) -> list[tuple[object, ...]]:
    return [tuple(v for k, v in vars(row).items() if k != "seconds") for row in rows]


class KilledError(Exception):
    """Stands for the end of the process."""


@pytest.mark.parametrize(
    ("method", "arch", "more"),
    [
        ("certificate", "mlp-3x16", {"learn_beta": True, "shift": 1, "select": "certified"}),
        ("ccb", "mlp-2x16", {"target": 2.0, "warp": 0.05}),
        ("lcnn", "convnet", {}),
    ],
)
def test_resumed_run_ends_bit_for_bit_where_the_other_does(
    method: str, arch: str, more: dict[str, object], data: Path, tmp_path: Path
) -> None:
    samples, chosen = read_training(data, 40), options(method, arch, **more)
    whole = Trainer(chosen, samples)
    expected = run(whole)
    first, checkpoint = Trainer(chosen, samples), tmp_path / "checkpoint"

    def killed_in_the_third_epoch(step: int) -> None:
        if step == 2 * first.steps_per_epoch + 2:
            raise KilledError

    with pytest.raises(KilledError):
        first.run(lambda _: first.save(checkpoint), killed_in_the_third_epoch)
    second = Trainer(chosen, samples)
    second.resume(checkpoint)
    assert len(second.rows) == 2
    assert run(second) == expected
    assert without_times(second.rows) == without_times(whole.rows)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns(method: str, data: Path) -> None:
    trainer = Trainer(options(method, epochs=6, rate=2e-2), read_training(data, 40))
    run(trainer)
    assert trainer.rows[-1].validation_accuracy > 0.9
    if METHODS[method].ramped:
        assert trainer.rows[-1].certified_estimate > 0.5


def test_seeds_differ(data: Path) -> None:
    samples = read_training(data, 40)
    assert run(Trainer(options("standard", seed=1), samples)) == run(Trainer(options("standard", seed=1), samples))
    assert run(Trainer(options("standard", seed=1), samples)) != run(Trainer(options("standard", seed=2), samples))


def test_checkpoints_of_other_runs_are_refused(data: Path, tmp_path: Path) -> None:
    samples, path = read_training(data, 40), tmp_path / "checkpoint"
    Trainer(options("standard"), samples).save(path)
    with pytest.raises(UsageError, match="seed: 0 there, 3 here"):
        Trainer(options("standard", seed=3), samples).resume(path)
    with pytest.raises(UsageError, match="other data"):
        Trainer(options("standard"), read_training(data, 50)).resume(path)
    path.write_bytes(b"nothing")
    with pytest.raises(UnreadableError, match="not a checkpoint"):
        Trainer(options("standard"), samples).resume(path)


def test_validation_samples_are_set_aside(data: Path) -> None:
    found = read_training(data, 40)
    assert found.shape == (1, 8, 8)
    assert len(found.x) == 200
    trained = {x.numpy().tobytes() for x in found.x}
    assert not any(x.numpy().tobytes() in trained for x in found.x_validation)
    assert float(found.x.max()) <= 1.0
    with pytest.raises(UsageError, match="--validation"):
        read_training(data, 240)


def test_losses_that_are_not_finite_end_the_run(data: Path) -> None:
    samples = read_training(data, 40)
    samples.x[:] = torch.inf
    with pytest.raises(UsageError, match="--rate"):
        run(Trainer(options("standard"), samples))


def test_warped_images_are_moved_a_little_and_otherwise_kept() -> None:
    seeded = torch.Generator().manual_seed(0)
    x = torch.zeros(200, 2, 21, 21)
    x[:, 1, 9:12, 14:17] = 1.0  # its centre lies at (0, 10 / 21) where the image's corners are at +-1
    assert torch.allclose(warped(x, 0.0, seeded), x, atol=1e-5)
    y = warped(x, 0.1, seeded)
    assert y.shape == x.shape
    assert not y[:, 0].any()
    assert float(y.min()) >= 0.0
    assert float(y.max()) <= 1.0 + 1e-6
    size, place = y[:, 1].sum((1, 2)), torch.arange(21) - 10.0
    down, right = ((y[:, 1].sum(axis) * place).sum(1) / size for axis in (2, 1))
    most = 0.1 * (1 + 10 / 21 + 1) / (1 - 0.2) * 10.5  # both entries of a row and the inverse's stretching
    assert float(down.abs().max()) < most
    assert float((right - 5.0).abs().max()) < most
    assert float(down.std()) > 0.5
    assert float(right.std()) > 0.5


def test_only_images_are_warped() -> None:
    with pytest.raises(UsageError, match="--warp distorts images"):
        warped(torch.zeros(3, 5), 0.1, torch.Generator())
    with pytest.raises(UsageError, match="--warp must lie in"):
        options("standard", warp=1.0)
