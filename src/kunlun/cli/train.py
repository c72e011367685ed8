"""`kunlun train`."""

from __future__ import annotations

import click

from kunlun.cli.group import json_option, overrides_argument, print_json, verb


@verb(
    "kunlun train small data=datasets/mine",
    "kunlun train base data=datasets/mine model.layers=2 train.lr=0.002 --dry-run",
    "kunlun train base --print > mine.yaml && kunlun train mine.yaml data=datasets/mine",
    "kunlun train small data=datasets/mine --resume",
    name="train",
)
@click.argument("preset", required=False, metavar="PRESET-or-FILE")
@overrides_argument
@click.option("--resume", is_flag=True, help="Go on from the run's newest whole checkpoint.")
@click.option("--dry-run", is_flag=True, help="Print modules, parameters, FLOPs, memory; stop.")
@click.option("--print", "print_config", is_flag=True, help="Print the resolved YAML; stop.")
@click.option("--list", "list_presets", is_flag=True, help="Print the presets; stop.")
@json_option
def command(
    preset: str | None,
    overrides: tuple[str, ...],
    resume: bool,
    dry_run: bool,
    print_config: bool,
    list_presets: bool,
    as_json: bool,
) -> None:
    """Train a model; keys override the preset or file."""
    if list_presets:
        from kunlun.cli.presets import presets
        from kunlun.report.table import table

        found = presets()
        rows = [[name, about] for name, about in found.items()]
        print_json(found) if as_json else click.echo(table(("preset", "what it is"), rows))
        return
    if preset is None:
        raise click.UsageError("which preset or file? See `kunlun train --list`")
    from kunlun.cli.presets import names_data
    from kunlun.training.config import load_run_config

    if not names_data(preset, overrides):
        if not print_config:
            raise click.UsageError(
                "which data? Add data=DIR (a dataset directory) or data=synth:demo"
            )
        overrides = ("data=DIR", *overrides)  # a place to fill in
    config = load_run_config(preset, list(overrides))
    if print_config:
        from kunlun.config import to_yaml

        print_json(config.to_dict()) if as_json else click.echo(to_yaml(config.to_dict()), nl=False)
    elif dry_run:
        from kunlun.training.plan import make_plan

        plan = make_plan(config)
        if as_json:
            print_json(plan.to_dict())
        else:
            from kunlun.cli.plan import show

            show(plan)
    else:
        from kunlun.training.trainer import train

        run = train(config, resume=resume, quiet=as_json)
        if as_json:
            click.echo((run / "summary.json").read_text())
        else:
            click.echo(f"next: kunlun evaluate {run}")
