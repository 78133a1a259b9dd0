"""``lit-ddpm compare``, and the same functions in Python."""

import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from lit_ddpm._internal.checks import InputError
from lit_ddpm._internal.files import create_directory, has_files
from lit_ddpm._internal.stop import stop
from lit_ddpm.cli.errors import ArgumentParser
from lit_ddpm.compare.audit import audit
from lit_ddpm.compare.comparison import Comparison
from lit_ddpm.compare.figures import figures, plot_audit
from lit_ddpm.compare.jobs import run_all
from lit_ddpm.compare.page import write_page
from lit_ddpm.compare.plan import Plan, check_resumable
from lit_ddpm.compare.variants import OBJECTIVES, Variant, check_variants, resolve_models, resolve_variants
from lit_ddpm.compare.wandb_run import log_comparison
from lit_ddpm.data.spec import DataSpec

DEFAULT_DIRECTORY = "runs/compare"


def compare(
    configs: Sequence[str | Path] = (),
    objectives: Sequence[str | Path] = (),
    num_seeds: int = 1,
    output_dir: str | Path = DEFAULT_DIRECTORY,
    resume: bool = False,
    overrides: Sequence[str] = (),
    models: Sequence[str | Path] = (),
    jobs: int = 1,
) -> Comparison:
    """Trains, tests and compares variants on equal terms: `prepare`, all runs in separate processes, and `collect`.

    The variants of a seed have the same initial weights, data order, timesteps, noise and budget. Trained `models` are
    further variants, which are only measured, on the same images.

    Args:
        configs: Configuration files; later ones override earlier ones.
        objectives: For each variant the name of a built-in objective (`OBJECTIVES`), the class name or import path of a
            `Weighting` or `Objective`, or an overlay.
        num_seeds: The number of seeds 0, 1, ... of each variant.
        output_dir: The directory of the comparison.
        resume: Resume a comparison in that directory; completed work is not repeated.
        overrides: Flags for every variant, such as ``--trainer.max_epochs=5``.
        models: Run directories or checkpoints of trained models, such as those of ``lit-ddpm import``.
        jobs: The number of runs at a time, on one device each.

    Raises:
        ValueError: If an argument is invalid, or the directory is not empty without `resume`.
        ArithmeticError: If the two forms of the KL differ for a variant, see `Audit.check`.
    """
    if jobs < 1:
        raise InputError(f"jobs = {jobs} must be at least 1.")
    plan = prepare(configs, objectives, num_seeds, output_dir, resume, overrides, models)
    remaining = sum(not run.done for run in plan.runs)
    size = f"{len(plan.variants)} variants, {num_seeds} {'seed' if num_seeds == 1 else 'seeds'} each"
    order = "one after another" if jobs == 1 else f"{jobs} at a time"
    print(f"{remaining} of {len(plan.runs)} runs to do ({size}), {order}", flush=True)
    run_all(plan.runs, jobs)
    return _collect(plan)


def prepare(
    configs: Sequence[str | Path] = (),
    objectives: Sequence[str | Path] = (),
    num_seeds: int = 1,
    output_dir: str | Path = DEFAULT_DIRECTORY,
    resume: bool = False,
    overrides: Sequence[str] = (),
    models: Sequence[str | Path] = (),
) -> Plan:
    """Checks and audits the variants of `compare`, and writes the plan from which any process executes a run.

    `output_dir` receives ``comparison.json``, ``commands.txt`` with a command for each run, and the plots of the
    audits. See `compare` for the arguments and errors.
    """
    if num_seeds < 1:
        raise InputError(f"seeds = {num_seeds} must be at least 1.")
    directory = Path(output_dir)
    if models and num_seeds > 1:
        raise InputError(f"seeds = {num_seeds}: trained models have one seed, so a comparison with them has one too.")
    variants = [*resolve_variants(configs, objectives, overrides), *resolve_models(models, overrides)]
    check_variants(variants)
    if has_files(directory):
        if not resume:
            raise InputError(
                f"{directory} is not empty: resume the comparison there with --resume, or set another directory with "
                "--output_dir."
            )
        check_resumable(directory)
    options = [f"--config {shlex.quote(str(config))}" for config in configs]
    for option, values in (("--objectives", objectives), ("--models", models)):
        options += [f"{option} {','.join(map(str, values))}"] if values else []
    command = " ".join(["lit-ddpm compare", *options, f"--seeds {num_seeds}", *map(shlex.quote, overrides)])
    plan = Plan(directory, command, variants, num_seeds, {})
    for run in plan.runs:
        run.check()
    create_directory(directory)
    plan = replace(plan, audits={variant.name: _audit(variant, directory) for variant in variants})
    plan.save()
    return plan


def run(output_dir: str | Path, number: int) -> bool:
    """Executes run `number`, from 0, of a prepared comparison, unless it is done or another process executes it.

    Returns whether it is done now.

    Raises:
        ValueError: If the directory has no plan or no such run.
        subprocess.CalledProcessError: If a command fails.
    """
    plan = Plan.load(Path(output_dir))
    if not 0 <= number < len(plan.runs):
        raise InputError(f"run = {number} is out of range: {output_dir} has the runs 0 to {len(plan.runs) - 1}.")
    chosen = plan.runs[number]
    chosen.attempt()
    return chosen.done


def collect(output_dir: str | Path) -> Comparison:
    """Writes the tables and the report of a prepared comparison from its completed runs.

    `output_dir` receives ``table.csv``, ``differences.csv``, ``report.html`` and its figures.

    Raises:
        ValueError: If the directory has no plan, or no variant is complete.
    """
    plan = Plan.load(Path(output_dir))
    comparison = _collect(plan)
    if not comparison.results:
        raise InputError(
            f"output_dir = {output_dir}: no variant has all its runs yet, so there is nothing to collect. Execute them "
            f"by the commands in {plan.directory / 'commands.txt'}."
        )
    return comparison


def _collect(plan: Plan) -> Comparison:
    """Writes tables, figures and page of the variants of which all runs are complete, if there are any."""
    by_variant = {variant.name: [run for run in plan.runs if run.variant is variant] for variant in plan.variants}
    results = {name: [run.result() for run in own] for name, own in by_variant.items() if all(run.done for run in own)}
    comparison = Comparison(plan, results)
    if results:
        comparison.save_csv(plan.directory)
        found = figures(comparison)
        for name, (_, picture) in found.items():
            picture.save(plan.directory / f"{name}.png")
        report = plan.directory / "report.html"
        write_page(comparison, found, report)
        log_comparison(comparison, found)
        print(f"\n{comparison}\nwritten to {report}, table.csv and differences.csv")
    return comparison


def _audit(variant: Variant, directory: Path) -> str:
    """Audits a variant, writes the plot, and raises an ArithmeticError if the audit fails."""
    dtypes = list(dict.fromkeys([torch.float64, torch.float32, variant.output_dtype]))
    result = audit(variant.module.denoiser, dtypes, DataSpec.of(variant.data).image_shape or (1, 8, 8))
    plot_audit(result).save(directory / f"audit_{variant.name}.png")
    print(f"{variant.name}: {result}", flush=True)
    result.check()
    return str(result)


def run_compare(args: Sequence[str]) -> None:
    """Runs the command."""
    parser = ArgumentParser(
        "lit-ddpm compare",
        description="Trains, tests and compares several variants on equal terms: for each seed the same initial "
        "weights, data order, timesteps and noise, and the same budget. Other flags of `lit-ddpm fit` apply to every "
        "variant.",
    )
    parser.add_argument("--config", action="append", default=[], help="configuration file; later ones override it")
    built_in = ", ".join(OBJECTIVES)
    parser.add_argument(
        "--objectives",
        default="",
        help=f"comma-separated variants: {built_in}, classes such as MinSNRWeighting or mine.MyWeighting, or overlays",
    )
    parser.add_argument("--models", default="", help="comma-separated run directories of trained models to measure")
    parser.add_argument("--seeds", type=int, default=1, help="the number of seeds of each variant (default: 1)")
    parser.add_argument(
        "--output_dir",
        default=DEFAULT_DIRECTORY,
        help=f"the directory of the comparison (default: {DEFAULT_DIRECTORY})",
    )
    parser.add_argument("--resume", action="store_true", help="resume the comparison in that directory")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, on a device each (default: 1)")
    steps = parser.add_mutually_exclusive_group()
    steps.add_argument("--prepare", action="store_true", help="only write the plan and a command for each run")
    steps.add_argument("--run", type=int, metavar="K", help="execute run K, from 0, of the plan in output_dir")
    steps.add_argument("--collect", action="store_true", help="write tables and report of the runs in output_dir")
    known, overrides = parser.parse_known_args(args)
    objectives, models = ([name for name in value.split(",") if name] for value in (known.objectives, known.models))
    step = "--collect" if known.collect else f"--run {known.run}" if known.run is not None else None
    if step and (known.config or objectives or models or overrides):
        extra = [*known.config, *objectives, *models, *overrides][0]
        raise InputError(f"{step} takes everything from the plan in output_dir: remove {extra}.")
    try:
        if known.run is not None:
            _run_one(known.output_dir, known.run)
        elif known.collect:
            if missing := collect(known.output_dir).missing:
                print(f"{len(missing)} runs are not complete: {'; '.join(missing)}.")
        else:
            settings = (known.config, objectives, known.seeds, known.output_dir, known.resume, overrides, models)
            if known.prepare:
                plan = prepare(*settings)
                print(f"{len(plan.runs)} runs, a command each in {plan.directory / 'commands.txt'}; then --collect")
            elif failed := compare(*settings, known.jobs).missing:
                logs = "; ".join(f"{name} ({log})" for name, log in failed.items())
                stop(f"{len(failed)} runs failed: {logs}. Repeat them with --resume.")
    except ArithmeticError as error:
        stop(str(error))
    except KeyboardInterrupt:
        stop("interrupted; resume with --resume.")


def _run_one(output_dir: str, number: int) -> None:
    try:
        done = run(output_dir, number)
    except subprocess.CalledProcessError:
        failed = Plan.load(Path(output_dir)).runs[number]
        stop(f"run {number} ({failed.name}) failed: {failed.last_output()} ({failed.files.log}).")
    print(f"run {number} is {'done' if done else 'in progress in another process'}")
