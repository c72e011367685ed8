"""`kunlun compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from kunlun.cli.group import json_option, overrides_argument, print_json, verb


@verb(
    "kunlun compare demo --models kunlun,dcnv2,dlrm --seeds 3",
    "kunlun compare small data=datasets/mine --models kunlun,dcnv2 --flops-per-sample 5e6",
    "kunlun compare small data=datasets/mine --models kunlun,mine/tuned.yaml --match time",
    "kunlun compare small data=datasets/mine --models kunlun,din --match flops --trials tries.yaml",
    "kunlun compare demo --ablations --seeds 3 --out runs/ablations",
    "kunlun compare demo --models kunlun,pma,no_comp_skip --dry-run",
    name="compare",
)
@click.argument("preset", metavar="PRESET-or-FILE")
@overrides_argument
@click.option(
    "--models",
    help="Names, ablations or .yaml files, by commas; the others are held against the first.",
)
@click.option("--ablations", is_flag=True, help="Kunlun as configured against each part changed.")
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True)
@click.option(
    "--match",
    type=click.Choice(["flops", "params", "time"]),
    help="Size every model to what the first one costs.",
)
@click.option("--flops-per-sample", type=float, help="Size every model to this; forward FLOPs.")
@click.option(
    "--trials",
    type=click.Path(path_type=Path),
    help="YAML of settings to try, as many for every model; the best on validation is compared.",
)
@click.option(
    "--jobs",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Runs at once; CPU threads are shared.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="[default: runs/NAME-compare or NAME-ablations]",
)
@click.option("--dry-run", is_flag=True, help="Print models, parameters, FLOPs; stop.")
@json_option
def command(
    preset: str,
    overrides: tuple[str, ...],
    models: str | None,
    ablations: bool,
    seeds: int,
    match: str | None,
    flops_per_sample: float | None,
    trials: Path | None,
    jobs: int,
    out: Path | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Train models side by side and tell which differences are real.

    The file's model is one of them; others come with their own defaults. Every model and seed is an
    ordinary run under OUT/cells; what is finished is not run again, what was cut short goes on.
    Writes OUT/compare.json, compare.md and compare.html.
    """
    if (models is None) == (not ablations):
        raise click.UsageError("what is compared? Give either --models A,B or --ablations")
    if flops_per_sample is not None and match not in (None, "flops"):
        raise click.UsageError(f"--flops-per-sample is a budget of flops, not of {match}")
    if flops_per_sample is not None and not 0 < flops_per_sample < float("inf"):
        raise click.UsageError(f"--flops-per-sample is {flops_per_sample}, expected more than 0")
    names = [name for name in (models or "").split(",") if name]
    if not names and not ablations:
        raise click.UsageError("--models names nothing")
    from kunlun.cli.presets import names_data

    if not names_data(preset, overrides):
        raise click.UsageError("which data? Add data=DIR (a dataset directory) or data=synth:demo")
    from kunlun.cli import keep_freed_memory
    from kunlun.report.comparison import text
    from kunlun.report.table import table
    from kunlun.scaling import compare, variants
    from kunlun.scaling.jobs import Jobs
    from kunlun.scaling.study import prepare
    from kunlun.training.config import load_run_config

    config = load_run_config(preset, list(overrides))
    left_out: dict[str, str] = {}
    if ablations:
        chosen, left_out = variants.ablations(config)
    else:
        chosen = variants.choose(config, names)
    study = prepare(
        config,
        chosen,
        seeds=seeds,
        out=out or Path("runs") / f"{config.name}-{'ablations' if ablations else 'compare'}",
        match="flops" if flops_per_sample is not None else match,  # type: ignore[arg-type]
        flops_per_sample=flops_per_sample,
        left_out=left_out,
        trials=trials,
    )
    if not dry_run:
        workers = Jobs(jobs, begin=keep_freed_memory)
        report = compare.run(study, lambda line: click.echo(line, err=True), workers)
        print_json(report) if as_json else click.echo(f"{text(report)}\n\npage: {study.page}")
        return
    plan = study.plan()
    tries = {name: study.plan([t.variant for t in own]) for name, own in study.trials.items()}
    if as_json:
        print_json({"models": plan, "trials": tries, "seeds": study.seeds, "match": study.match,
                    "left_out": left_out})  # fmt: skip
        return
    header = ("model", "parameters", "without tables", "FLOPs/sample", "changed")
    click.echo(table(header, [_row(p) for p in plan]))
    click.echo(f"{len(plan)} models x {seeds} seeds, to {study.out}/cells")
    if tries:
        rows = [_row(p) for own in tries.values() for p in own]
        click.echo(f"\n{table(('trial', *header[1:]), rows)}")
        each = len(rows) // len(plan)
        click.echo(f"{len(plan)} models x {each} trials of seed {study.seeds[0]}, "
                   f"to {study.out}/trials")  # fmt: skip
    for name, why in left_out.items():
        click.echo(f"left out: {name} ({why})")


def _row(plan: dict[str, Any]) -> list[str]:
    from kunlun.report.comparison import scaled, settings

    changed = settings(plan["changed"]) if plan["changed"] else "-"
    return [plan["name"], f"{plan['params']:,}", f"{plan['dense_params']:,}",
            scaled(plan["flops_per_sample"]), changed]  # fmt: skip
