"""`curvverify train --data D.npz --arch NAME --out MODEL.onnx`: train a network that is easy to certify."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from curvverify.cli.inputs import existing
from curvverify.cli.output import setup_logging, stderr_console, stdout_console, write_file
from curvverify.errors import UsageError

if TYPE_CHECKING:
    from curvverify.train.loop import EpochRow, Trainer

INTERRUPTED = 130


def train(
    data: Annotated[Path, typer.Option(metavar="D.npz", help="Arrays x_train and y_train; bytes are divided by 255.")],
    arch: Annotated[str, typer.Option(help="mlp-LxN (mlp-2x1024), convnet, resnet8, resnet18 or lcnn8.")],
    out: Annotated[Path, typer.Option(metavar="MODEL.onnx", help="The network; log, picture, checkpoint beside it.")],
    method: Annotated[
        str,
        typer.Option(help="standard, certificate, crt, ccb, crm, reward, lcnn, lcnn-gradient, cure or gnr."),
    ] = "certificate",
    eps: Annotated[float, typer.Option(help="l_2 radius that the methods train for.")] = 1.58,
    weight: Annotated[
        float | None,
        typer.Option(help="Of the penalty, for certificate of the curvature; the method's own if left out."),
    ] = None,
    target: Annotated[float | None, typer.Option(help="ccb: hold the curvature there instead.")] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the training samples.")] = 20,
    batch: Annotated[int, typer.Option(help="Samples per step.")] = 256,
    rate: Annotated[float, typer.Option(help="Adam's learning rate; falls linearly to 0.")] = 5e-3,
    warm_up: Annotated[int, typer.Option(help="Steps in which the rate grows.")] = 100,
    ramp: Annotated[float, typer.Option(help="Share of training in which eps grows.")] = 0.25,
    stretch: Annotated[float, typer.Option(help="Train for eps times this; eps itself is watched.")] = 1.0,
    decay: Annotated[float, typer.Option(help="Weight decay.")] = 0.0,
    average: Annotated[
        float | None, typer.Option(help="What averaged weights keep per step; 0.998, or 0 with normalisation.")
    ] = None,
    beta: Annotated[float, typer.Option(help="Of the centred softplus.")] = 5.0,
    learn_beta: Annotated[bool, typer.Option("--learn-beta", help="Train every activation's beta.")] = False,
    shift: Annotated[int, typer.Option(min=0, help="Move images by up to so many pixels.")] = 0,
    warp: Annotated[
        float, typer.Option(help="Distort images by affine maps with entries up to so far off the identity's.")
    ] = 0.0,
    validation: Annotated[int, typer.Option(help="Training samples set aside to watch the run.")] = 2000,
    limit: Annotated[int, typer.Option(min=0, help="Only so many training samples; 0 takes all.")] = 0,
    select: Annotated[
        Literal["last", "accuracy", "certified"],
        typer.Option(help="Which epoch to keep: the last, or the best on the validation samples."),
    ] = "last",
    seed: Annotated[int, typer.Option(help="Of weights and order.")] = 0,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="Refuse operations without a fixed result.")
    ] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    resume: Annotated[bool, typer.Option("--resume", help="Go on from MODEL.onnx.checkpoint.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log on stderr.")] = False,
) -> None:
    """Train a network that is easy to certify, and write it as ONNX."""
    setup_logging(verbose)
    if out.suffix != ".onnx":
        raise UsageError(f"--out {out}: name a file that ends in .onnx")
    if not out.parent.is_dir():
        raise UsageError(f"--out {out}: there is no folder {out.parent}")
    from curvverify.train.data import read_training
    from curvverify.train.loop import Trainer, TrainOptions

    if learn_beta and method == "standard":
        stderr_console().print("--learn-beta without a penalty: nothing keeps the curvature down", markup=False)
    options = TrainOptions(
        *(arch, method, eps, weight, target, epochs, batch, rate, warm_up, ramp, stretch, decay, average, beta),
        *(learn_beta, shift, warp, select, seed),
    )
    place = _device(device, deterministic)
    samples = read_training(existing(data), validation, limit)
    trainer = Trainer(options, samples, place)
    checkpoint = out.with_name(out.name + ".checkpoint")
    if resume and checkpoint.exists():
        trainer.resume(checkpoint)
    elif checkpoint.exists():
        raise UsageError(f"{checkpoint} is there already: add --resume to go on, or remove it")
    started, cpu = time.perf_counter(), time.process_time()
    try:
        _run(trainer, checkpoint, out)
    except KeyboardInterrupt:
        stderr_console().print(f"interrupted: the same command with --resume goes on from {checkpoint}", markup=False)
        raise typer.Exit(INTERRUPTED) from None
    spent = {"wall_seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu}
    _finish(trainer, out, checkpoint, spent, as_json)


def _device(name: str, deterministic: bool) -> Any:
    """The torch device; UsageError where it is not there."""
    import torch

    try:
        place = torch.device(name)
    except RuntimeError:
        raise UsageError(f"--device {name!r}: choose cpu, cuda or cuda:N") from None
    if place.type not in ("cpu", "cuda"):
        raise UsageError(f"--device {name!r}: choose cpu, cuda or cuda:N")
    if place.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"--device {name}: this machine, or this build of torch, has no CUDA device")
    torch.use_deterministic_algorithms(deterministic)
    return place


def _run(trainer: Trainer, checkpoint: Path, out: Path) -> None:
    """Train with a progress bar on a terminal, a line per epoch elsewhere."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    from curvverify.report.training import csv_text

    console = stderr_console()
    total = trainer.options.epochs * trainer.steps_per_epoch
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        start = len(trainer.rows) * trainer.steps_per_epoch
        task = progress.add_task(f"epoch {len(trainer.rows) + 1}", total=total, completed=start)

        def done(row: EpochRow) -> None:
            trainer.save(checkpoint)
            write_file(out.with_suffix(".csv"), csv_text(trainer.rows))
            progress.update(task, description=f"epoch {row.epoch + 1}")
            console.print(_line(row, trainer.options.epochs), markup=False, highlight=False, soft_wrap=True)

        trainer.run(done, lambda step: progress.update(task, completed=step))


def _line(row: EpochRow, epochs: int) -> str:
    return (
        f"epoch {row.epoch}/{epochs}: loss {row.loss:.4f}, validation {100 * row.validation_accuracy:.2f} %, "
        f"certified {100 * row.certified_estimate:.2f} % (estimate), curvature {row.curvature_estimate:.4g}, "
        f"{row.seconds:.1f} s"
    )


def _finish(trainer: Trainer, out: Path, checkpoint: Path, spent: dict[str, float], as_json: bool) -> None:
    """Write network and picture, check that the network comes back, and summarise with rigorous constants."""
    from dataclasses import asdict

    from curvverify.bounding.constants.report import curvature
    from curvverify.errors import UnsupportedError
    from curvverify.graph import load
    from curvverify.plots.training import training_figure
    from curvverify.train.export import save_onnx

    save_onnx(trainer.trained(), trainer.data.shape, out)
    report = curvature(load(out))
    picture: Path | None = out.with_suffix(".png")
    try:
        title = f"{trainer.options.arch}, {trainer.options.method}"
        training_figure(trainer.rows, title, trainer.options.eps, picture)  # type: ignore[arg-type]
    except UnsupportedError as error:
        picture = None
        stderr_console().print(f"no picture: {error}", markup=False)
    checkpoint.unlink(missing_ok=True)
    kept = trainer.rows[trainer.best_epoch - 1]
    summary = {
        "model": str(out),
        "log": str(out.with_suffix(".csv")),
        "picture": None if picture is None else str(picture),
        "options": asdict(trainer.options),
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        **{k: v for k, v in asdict(kept).items() if k != "seconds"},
        "lipschitz_upper": report.output.lipschitz_upper,
        "curvature_upper": report.output.curvature_upper,
        "seconds_per_epoch": sum(row.seconds for row in trainer.rows) / len(trainer.rows),
        **spent,
    }
    if as_json:
        from curvverify.report.serialise import plain

        json.dump(plain(summary), sys.stdout)
        typer.echo()
        return
    console = stdout_console()
    console.print(f"{out}: {summary['parameters']} parameters", markup=False, soft_wrap=True)
    console.print(
        f"epoch {kept.epoch}: validation accuracy {100 * kept.validation_accuracy:.2f} %; proved everywhere: Lipschitz "
        f"constant at most {report.output.lipschitz_upper:.4g}, curvature at most {report.output.curvature_upper:.4g}",
        markup=False,
        soft_wrap=True,
    )
    console.print(f"certify it: curvverify radius {out} --data D.npz --out radii.csv --eps {trainer.options.eps:g}")
