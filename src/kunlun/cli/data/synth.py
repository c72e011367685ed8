"""`kunlun data synth`."""

from __future__ import annotations

from pathlib import Path

import click

from kunlun.cli.group import json_option, overrides_argument, print_json, verb


@verb(
    "kunlun data synth tiny --out datasets/tiny",
    "kunlun data synth demo --raw logs users=2000 seed=7",
    "kunlun data synth --list",
    name="synth",
)
@click.argument("preset", default="demo", metavar="[PRESET]")
@overrides_argument
@click.option("--out", type=click.Path(path_type=Path), help="Write a dataset directory.")
@click.option(
    "--raw",
    type=click.Path(path_type=Path),
    help="Write raw logs and their schema.yaml, as a user would have them.",
)
@click.option("--list", "list_presets", is_flag=True, help="Every preset with its keys.")
@json_option
def command(
    preset: str,
    overrides: tuple[str, ...],
    out: Path | None,
    raw: Path | None,
    list_presets: bool,
    as_json: bool,
) -> None:
    """Write a synthetic stream; its labels come from a known probability.

    PRESET is tiny, demo (the default), lab or long; keys such as users=2000 change it.
    """
    from kunlun.cli.text import outline
    from kunlun.config import override, parse
    from kunlun.data.synthetic import PRESETS, SyntheticConfig, synthesize, write_raw
    from kunlun.errors import ConfigError

    if list_presets:
        presets = {name: config.to_dict() for name, config in PRESETS.items()}
        print_json(presets) if as_json else click.echo(outline(presets))
        return
    if "=" in preset:  # the preset was left out
        preset, overrides = "demo", (preset, *overrides)
    if (out is None) == (raw is None):
        raise click.UsageError("give either --out DIR (a dataset) or --raw DIR (raw logs)")
    if preset not in PRESETS:
        raise ConfigError(f"no preset '{preset}' of the stream; known: {', '.join(PRESETS)}")
    values = override(PRESETS[preset].to_dict(), list(overrides))
    config = parse(SyntheticConfig, values, f"stream '{preset}'")
    if out is not None:
        written = synthesize(config, out)
        then = f"kunlun data inspect {out}"
    else:
        assert raw is not None
        write_raw(config, raw)
        written = {"raw": str(raw), "synthetic": config.to_dict()}
        then = f"kunlun data prepare {raw / 'schema.yaml'} --out DIR"
    print_json(written) if as_json else click.echo(f"wrote {out or raw}; next: {then}")
