"""`kunlun bench`: what the operators and the model give on this machine."""

from __future__ import annotations

from kunlun.cli.group import LazyGroup, Verb

VERBS = (
    Verb("ops", "measure", "every operator, verified, beside what it replaces"),
    Verb("model", "measure", "training steps: native, portable, padded and eager"),
)

command = LazyGroup(
    "bench",
    "kunlun bench: how fast this machine runs the operators and the model",
    VERBS,
    module="kunlun.cli.bench",
    tail="Try: kunlun bench ops --only gdpa --shapes B    kunlun bench VERB --help",
)
