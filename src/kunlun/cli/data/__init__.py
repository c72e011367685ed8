"""`kunlun data`: from raw logs to a dataset directory."""

from __future__ import annotations

from kunlun.cli.group import LazyGroup, Verb

VERBS = (
    Verb("prepare", "make", "raw logs and schema.yaml -> a dataset directory"),
    Verb("synth", "make", "a synthetic stream whose true click probability is known"),
    Verb("validate", "look", "read everything a schema names, write nothing"),
    Verb("inspect", "look", "counts, rates, coverage and history lengths of a dataset"),
)

command = LazyGroup(
    "data",
    "kunlun data: raw logs in, point-in-time-correct samples out",
    VERBS,
    module="kunlun.cli.data",
    tail="Try: kunlun data synth tiny --raw logs    kunlun data VERB --help",
)
