"""`kunlun bench model` on a tiny setting: the three ways agree, or nothing is timed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kunlun.bench import clock, modules, padded_model, tables
from kunlun.bench.batches import make_batch, make_schema
from kunlun.bench.model import SETTINGS, Setting, bench_model, compare
from kunlun.bench.ops import WrongResultError
from kunlun.bench.padded_model import PaddedKunlun
from kunlun.errors import ConfigError
from kunlun.models import io
from kunlun.ops import native
from kunlun.ops.jagged import Jagged
from kunlun.training.config import load_run_config


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SETTINGS, "tiny", Setting(4, 9, 20))


def bench(**settings: Any) -> dict[str, Any]:
    given = {"preset": "small", "settings": ["tiny"], "precision": "fp32"}
    return bench_model(**{**given, **settings})


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_report(precision: str) -> None:
    (setting,) = bench(precision=precision)["settings"]
    assert setting["precision"] == precision
    assert setting["padded_rows"] > setting["events"] > 0
    rows = {row["way"]: row for row in setting["ways"]}
    assert set(rows) >= {"portable", "padded"}
    for row in rows.values():
        assert set(row["modules_ms"]) == {"ffn", "window", "pooling"}
        assert row["samples_per_s"] == pytest.approx(4e3 / row["step_ms"])
        assert row["error"] < 1e-4
    shares = rows["portable"]["operator_shares"]
    assert {"gdpa", "gdpa_backward", "window_attention_backward", "rotary"} <= set(shares)
    assert 0 < sum(shares.values()) < 1
    assert "operator_shares" not in rows["padded"]
    pairs = {(s["of"], s["over"]) for s in setting["speed_ups"]}
    assert ("portable", "padded") in pairs
    assert len(pairs) == len(rows) * (len(rows) - 1) // 2


def test_without_the_library_native_is_a_row_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(native, "load", lambda: native.Loaded(None, "not built here"))
    report = bench()
    ways = report["settings"][0]["ways"]
    assert ways[0] == {"way": "native", "skipped": "not built here"}
    assert [row["way"] for row in ways[1:]] == ["portable", "padded"]
    lines = tables.model_table(report).splitlines()
    assert any("| native | not built here | - |" in line for line in lines)
    assert len({line.count("|") for line in lines[:5]}) == 1


@pytest.mark.parametrize("broken", ["run_ffn", "run_window", "run_pooling"])
def test_a_padded_model_that_differs_is_not_timed(
    broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = getattr(padded_model, broken)

    def wrong(*args: Any) -> Any:
        out = right(*args)
        if isinstance(out, torch.Tensor):
            return out * 1.01
        return out.with_values(out.values * 1.01)

    monkeypatch.setattr(padded_model, broken, wrong)
    monkeypatch.setattr(clock, "interleaved", lambda *_, **__: pytest.fail("something was timed"))
    with pytest.raises(WrongResultError, match=r"padded: .* is off by .* nothing is timed"):
        bench()


def test_an_unknown_setting_is_told() -> None:
    with pytest.raises(ConfigError, match="no setting 'huge'; known: short, long"):
        bench(settings=["huge"])


@pytest.mark.parametrize(
    "change",
    [
        "tower.ffn.kind=softmax",
        "tower.ffn.norm=bare",
        "tower.history=3",
        "tower.ages=true",
        "tower.pooling.reduce=sum",
        "user_only=true",
    ],
)
def test_the_padded_model_refuses_what_it_does_not_know(change: str) -> None:
    schema = make_schema(20)
    section = load_run_config("small", ["data=none", f"model.{change}"]).model
    section = {**section, "user_only": False} if "user_only" not in change else section
    with pytest.raises(ConfigError, match=r"padded model has GDPA|user_only"):
        PaddedKunlun(io.build(schema, section, "small"))


def test_empty_histories_are_padded_like_any() -> None:
    torch.manual_seed(0)
    schema = make_schema(20)
    model = io.build(schema, load_run_config("small", ["data=none"]).model, "small")
    batch = make_batch(schema, 3, 9, 20, seed=0)
    for events in batch.events.values():
        events.offsets[1] = 0  # the second history takes over the first one's events
    torch.testing.assert_close(PaddedKunlun(model)(batch), model(batch), atol=1e-4, rtol=1e-4)


def test_amdahl() -> None:
    slow = {"way": "padded", "step_ms": 100.0, "modules_ms": {"ffn": 40.0, "window": 20.0}}
    fast = {"way": "native", "step_ms": 60.0, "modules_ms": {"ffn": 10.0, "window": 10.0}}
    found = compare(slow, fast)
    assert (found["of"], found["over"]) == ("native", "padded")
    assert found["predicted"] == pytest.approx(100 / 60)
    assert found["measured"] == pytest.approx(100 / 60)
    assert found["reached"] == pytest.approx(1)
    assert found["modules"]["ffn"] == {"share": 0.4, "ratio": 4.0}


def test_modules_alone_compute_what_they_do_in_the_model() -> None:
    torch.manual_seed(0)
    schema = make_schema(20)
    model = io.build(schema, load_run_config("small", ["data=none"]).model, "small")
    batch = make_batch(schema, 4, 9, 20, seed=0)
    with torch.no_grad():
        caught = modules.catch(model, lambda: model(batch))
    assert {kind: len(calls) for kind, calls in caught.items()} == {
        "ffn": 6, "window": 3, "pooling": 6,
    }  # fmt: skip
    for kind, found in caught.items():
        ways = (modules.calls(way, found) for way in ("native", "padded"))
        for packed, padded, one in zip(*ways, found, strict=True):
            out = padded.run()
            if kind != "pooling":
                out = Jagged.from_padded(out, one.s.lengths).values
            torch.testing.assert_close(out, packed.run(), atol=1e-4, rtol=1e-4)
