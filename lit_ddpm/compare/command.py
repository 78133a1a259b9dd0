"""``lit-ddpm compare``, and the same function in Python."""

import shlex
from collections.abc import Sequence
from pathlib import Path

import torch

from lit_ddpm._internal.files import has_files
from lit_ddpm.cli.errors import ArgumentParser, stop
from lit_ddpm.compare.arms import OBJECTIVES, Arm, check_arms, resolve_arms, resolve_models
from lit_ddpm.compare.audit import Audit, audit
from lit_ddpm.compare.comparison import Comparison
from lit_ddpm.compare.report import plot_audit, write_report
from lit_ddpm.compare.runs import Run, expected_seconds, minutes, run_all
from lit_ddpm.data.protocols import DataInfo
from lit_ddpm.training.run_directory import RunDirectory


def compare(
    configs: Sequence[str | Path] = (),
    objectives: Sequence[str | Path] = (),
    num_seeds: int = 1,
    output_dir: str | Path = "runs/compare",
    resume: bool = False,
    overrides: Sequence[str] = (),
    models: Sequence[str | Path] = (),
) -> Comparison:
    """Trains, tests and compares arms on equal terms, one after another, each in a separate process.

    Trained `models` are further arms, which are measured on the same images only.

    The arms of a seed have the same initial weights, data order, timesteps, noise and budget. `output_dir` receives the
    directory of each run, ``table.csv``, ``report.html`` and ``audit_<arm>.png``.

    Args:
        configs: Configuration files; later ones override earlier ones.
        objectives: For each arm the name of a built-in objective (`OBJECTIVES`) or the path of an overlay.
        num_seeds: The number of seeds 0, 1, ... of each arm.
        output_dir: The directory of the comparison.
        resume: Resume a comparison in that directory; completed work is not repeated.
        overrides: Flags for every arm, such as ``--trainer.max_epochs=5``.
        models: Run directories or checkpoints of trained models, such as those of ``lit-ddpm import``.

    Raises:
        ValueError: If an argument is invalid, or the directory is not empty without `resume`.
        ArithmeticError: If the two forms of the KL differ for an arm, see `Audit.check`.
    """
    if num_seeds < 1:
        raise ValueError(f"seeds = {num_seeds} must be at least 1.")
    directory = Path(output_dir)
    if models and num_seeds > 1:
        raise ValueError(f"seeds = {num_seeds}: trained models have one seed, so a comparison with them has one too.")
    arms = [*resolve_arms(configs, objectives, overrides), *resolve_models(models, overrides)]
    check_arms(arms)
    runs = [
        Run(arm, seed, RunDirectory(directory / arm.name / f"seed_{seed}"), directory.name, draws_samples=seed == 0)
        for seed in range(num_seeds)
        for arm in arms
    ]
    if not resume and has_files(directory):
        raise ValueError(
            f"{directory} is not empty: resume the comparison there with --resume, or set another directory with "
            "--output_dir."
        )
    for run in runs:
        run.check()
    directory.mkdir(parents=True, exist_ok=True)
    audits = {arm.name: _audit(arm, directory) for arm in arms}
    remaining = [run for run in runs if not run.done]
    seconds = [expected_seconds(arm) for arm in (arms[:1] if objectives else arms) if remaining]
    known = [each for each in seconds if each is not None]
    duration = f", about {minutes(sum(known) / len(known) * len(remaining))} in total" if known else ""
    size = f"{len(arms)} arms, {num_seeds} {'seed' if num_seeds == 1 else 'seeds'} each"
    print(f"{len(remaining)} of {len(runs)} runs to do ({size}), one after another{duration}", flush=True)
    failed = run_all(runs)
    by_arm = {arm.name: [run for run in runs if run.arm is arm] for arm in arms}
    results = {name: [run.result() for run in own] for name, own in by_arm.items() if all(run.done for run in own)}
    comparison = Comparison(arms, results, audits, num_seeds, {run.name: run.files.log for run in failed})
    if results:
        options = [f"--config {shlex.quote(str(config))}" for config in configs]
        for option, values in (("--objectives", objectives), ("--models", models)):
            options += [f"{option} {','.join(map(str, values))}"] if values else []
        options.append(f"--seeds {num_seeds}")
        command = " ".join(["lit-ddpm compare", *options, *map(shlex.quote, overrides)])
        comparison.save_csv(directory / "table.csv")
        write_report(comparison, runs, command, directory / "report.html")
        print(f"\n{comparison.table()}\nwritten to {directory / 'report.html'} and table.csv")
    return comparison


def _audit(arm: Arm, directory: Path) -> Audit:
    """Audits an arm, writes the plot, and raises an ArithmeticError if the audit fails."""
    dtypes = list(dict.fromkeys([torch.float64, torch.float32, arm.output_dtype]))
    result = audit(arm.module.denoiser, dtypes, DataInfo.of(arm.data).image_shape or (1, 8, 8))
    plot_audit(result).save(directory / f"audit_{arm.name}.png")
    print(f"{arm.name}: {result}", flush=True)
    result.check()
    return result


def run_compare(args: Sequence[str]) -> None:
    """Runs the command."""
    parser = ArgumentParser(
        "lit-ddpm compare",
        description="Trains, tests and compares several arms on equal terms: for each seed the same initial weights, "
        "data order, timesteps and noise, and the same budget. Other flags of `lit-ddpm fit` apply to every arm.",
    )
    parser.add_argument("--config", action="append", default=[], help="configuration file; later ones override it")
    built_in = ", ".join(OBJECTIVES)
    parser.add_argument("--objectives", default="", help=f"comma-separated arms: {built_in}, or paths of overlays")
    parser.add_argument("--models", default="", help="comma-separated run directories of trained models to measure")
    parser.add_argument("--seeds", type=int, default=1, help="the number of seeds of each arm (default: 1)")
    parser.add_argument(
        "--output_dir", default="runs/compare", help="the directory of the comparison (default: runs/compare)"
    )
    parser.add_argument("--resume", action="store_true", help="resume the comparison in that directory")
    known, overrides = parser.parse_known_args(args)
    objectives, models = ([name for name in value.split(",") if name] for value in (known.objectives, known.models))
    try:
        comparison = compare(known.config, objectives, known.seeds, known.output_dir, known.resume, overrides, models)
    except ArithmeticError as error:
        stop(str(error))
    except KeyboardInterrupt:
        stop("interrupted; resume with --resume.")
    if comparison.failed:
        logs = "; ".join(f"{name} ({log})" for name, log in comparison.failed.items())
        stop(f"{len(comparison.failed)} runs failed: {logs}. Repeat them with --resume.")
