"""Every metric against scikit-learn or its formula, in one piece and in chunks."""

from __future__ import annotations

import math
import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss, roc_auc_score

from kunlun.metrics import AUC, GAUC, Calibration, LogLoss, NormalizedEntropy, RankingMetrics
from kunlun.metrics.ne import cross_entropy, entropy, sums


def rows(n=500, *, ties=False, weighted=True, seed=0):
    """Scores that carry signal: logits [n], labels [n], weights [n], groups [n]."""
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, generator=draw) - 1
    if ties:
        logits = (logits * 2).round() / 2
    labels = (torch.rand(n, generator=draw) < logits.sigmoid()).float()
    weights = torch.rand(n, generator=draw) + 0.1 if weighted else torch.ones(n)
    groups = torch.randint(-5, 40, (n,), generator=draw)
    return logits, labels, weights, groups


def in_chunks(metric, data, sizes):
    for part in zip(*(x.split(sizes) for x in data), strict=True):
        metric.update(*part)
    return metric.compute()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ties", [False, True])
def test_auc_against_sklearn(ties, weighted):
    logits, labels, weights, groups = rows(ties=ties, weighted=weighted)
    metric = AUC()
    metric.update(logits, labels, weights, groups)
    expected = roc_auc_score(labels, logits, sample_weight=weights)
    assert metric.compute().value == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("weighted", [False, True])
def test_log_loss_against_sklearn(weighted):
    logits, labels, weights, _ = rows(weighted=weighted)
    metric = LogLoss()
    metric.update(logits, labels, weights)
    score = metric.compute()
    expected = log_loss(labels, logits.double().sigmoid(), sample_weight=weights)
    assert score.value == pytest.approx(expected, rel=1e-12)
    base = float((labels * weights.double()).sum() / weights.double().sum())
    assert score.detail == {"base_rate": pytest.approx(base, rel=1e-7), "rows": 500}


def test_ne_against_its_formula():
    logits, labels, weights, _ = rows()
    metric = NormalizedEntropy()
    metric.update(logits, labels, weights)
    p, y, w = (x.double().numpy() for x in (logits.double().sigmoid(), labels, weights))
    loss = -np.average(y * np.log(p) + (1 - y) * np.log(1 - p), weights=w)
    r = np.average(y, weights=w)
    expected = loss / -(r * math.log(r) + (1 - r) * math.log(1 - r))
    assert metric.compute().value == pytest.approx(expected, rel=1e-12)


def test_predicting_the_base_rate_gives_ne_one():
    labels = torch.tensor([1.0] * 3 + [0.0] * 97)
    metric = NormalizedEntropy()
    metric.update(torch.full((100,), math.log(3 / 97), dtype=torch.float64), labels)
    assert metric.compute().value == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ties", [False, True])
def test_gauc_against_sklearn_per_group(ties, weighted):
    logits, labels, weights, groups = rows(300, ties=ties, weighted=weighted)
    metric = GAUC()
    metric.update(logits, labels, weights, groups)
    total = mass = used = skipped = 0.0
    for group in groups.unique():
        mine = groups == group
        if labels[mine].unique().numel() < 2:
            skipped += 1
            continue
        size = float(weights[mine].double().sum())
        total += size * roc_auc_score(labels[mine], logits[mine], sample_weight=weights[mine])
        mass, used = mass + size, used + 1
    score = metric.compute()
    assert score.value == pytest.approx(total / mass, abs=1e-12)
    assert (score.detail["groups"], score.detail["skipped"]) == (used, skipped)
    assert score.detail["covered"] == pytest.approx(mass / float(weights.double().sum()))


def test_calibration_is_mean_p_over_mean_y_and_its_bins_add_up():
    logits, labels, weights, _ = rows()
    logits[:4] = torch.tensor([-50.0, 50.0, 8.0, -7.9])  # beyond, on and within the caps
    metric = Calibration()
    metric.update(logits, labels, weights)
    p, w = logits.double().sigmoid(), weights.double()
    expected = float((p * w).sum() / (labels * w).sum())
    assert metric.compute().value == pytest.approx(expected, rel=1e-12)
    bins = metric.bins()
    assert sum(b["rows"] for b in bins) == 500
    assert sum(b["p"] * b["weight"] for b in bins) == pytest.approx(float((p * w).sum()))
    assert all(a["p"] < b["p"] for a, b in pairwise(bins))
    assert bins[0]["p"] < 1e-20  # what lies below the cap keeps a cell of its own
    assert bins[-1]["rows"] == 2


@pytest.mark.parametrize("make", [AUC, lambda: AUC(bins=64), GAUC, LogLoss, NormalizedEntropy,
                                  Calibration])  # fmt: skip
class TestEveryMetric:
    def test_chunks_equal_the_whole(self, make):
        data = rows(400, ties=True)
        whole = in_chunks(make(), data, [400])
        parts = in_chunks(make(), data, [0, 1, 199, 200])
        assert parts.value == pytest.approx(whole.value, abs=1e-12)

    def test_unknown_labels_and_weight_zero_do_not_count(self, make):
        logits, labels, weights, groups = rows(100)
        labels[::3], weights[::5] = torch.nan, 0.0
        keep = ~labels.isnan() & (weights > 0)
        dirty = logits.clone()
        dirty[~keep] = torch.nan
        all_rows = in_chunks(make(), (dirty, labels, weights, groups), [100])
        clean = [x[keep] for x in (logits, labels, weights, groups)]
        kept = in_chunks(make(), clean, [len(clean[0])])
        assert all_rows.value == pytest.approx(kept.value, abs=1e-12)

    def test_nothing_seen_is_undefined_with_a_reason(self, make):
        metric = make()
        metric.update(*(x[:0] for x in rows()))
        assert metric.compute().value is None
        assert "no rows" in metric.compute().reason

    def test_a_nan_prediction_makes_it_undefined(self, make):
        logits, labels, weights, groups = rows(50)
        logits[7] = torch.nan
        score = in_chunks(make(), (logits, labels, weights, groups), [50])
        assert score.value is None
        assert score.reason == "1 predictions are NaN"

    def test_wrong_shape_is_named(self, make):
        logits, labels, weights, groups = rows(10)
        with pytest.raises(ValueError, match=r"labels has shape \(9,\), expected .*\(10,\)"):
            make().update(logits, labels[:9], weights, groups)

    def test_two_ranks_merge_into_the_whole(self, make):
        data = rows(400, ties=True)
        whole = in_chunks(make(), data, [400])
        left, right = make(), make()
        left.update(*(x[:150] for x in data))
        right.update(*(x[150:] for x in data))
        left.merge_state(right)
        assert left.compute().value == pytest.approx(whole.value, abs=1e-12)


@pytest.mark.parametrize(
    ("make", "label", "reason"),
    [
        (AUC, 1.0, r"one class only \(all positive\)"),
        (AUC, 0.0, r"one class only \(all negative\)"),
        (lambda: AUC(bins=8), 0.0, r"one class only \(all negative\)"),
        (GAUC, 1.0, "none of the 3 groups has both classes"),
        (NormalizedEntropy, 1.0, r"one class only \(all positive\)"),
        (Calibration, 0.0, r"one class only \(all negative\)"),
    ],
)
def test_one_class_is_undefined_never_a_half(make, label, reason):
    metric = make()
    metric.update(torch.randn(6), torch.full((6,), label), None, torch.tensor([1, 1, 2, 2, 3, 3]))
    score = metric.compute()
    assert score.value is None
    assert re.fullmatch(reason, score.reason)


def test_binned_auc_is_close_and_says_what_bins_must_be():
    logits, labels, weights, _ = rows(5000)
    exact, binned = AUC(), AUC(bins=2000)
    for metric in (exact, binned):
        metric.update(logits, labels, weights)
    assert binned.compute().value == pytest.approx(exact.compute().value, abs=5e-4)
    with pytest.raises(ValueError, match="bins is 1, expected at least 2"):
        AUC(bins=1)


def test_all_ties_are_one_half():
    metric = AUC()
    metric.update(torch.zeros(10), torch.tensor([1.0, 0.0] * 5))
    assert metric.compute().value == 0.5


def test_infinite_logits_cost_nothing_if_right_and_are_reported_if_wrong():
    right = cross_entropy(torch.tensor([torch.inf, -torch.inf]), torch.tensor([1.0, 0.0]))
    assert right.tolist() == [0.0, 0.0]
    metric = LogLoss()
    metric.update(torch.tensor([torch.inf, 0.0]), torch.tensor([0.0, 1.0]))
    assert metric.compute().value is None
    assert "infinitely confident" in metric.compute().reason


def test_expected_loss_under_the_true_probability_is_the_entropy():
    p = torch.tensor([0.1, 0.7], dtype=torch.float64)
    assert cross_entropy(torch.logit(p), p).tolist() == pytest.approx([entropy(0.1), entropy(0.7)])


def test_sums_keep_counting_where_float32_would_stop():
    n = 2**24
    total = torch.tensor([[0.0, n, 0.0, n]], dtype=torch.float64)
    one = sums(torch.zeros(1, 1), torch.zeros(1, 1), torch.ones(1))
    assert (total + one)[0, 1] == n + 1


def test_gauc_without_groups_says_so():
    with pytest.raises(ValueError, match="GAUC needs groups"):
        GAUC().update(torch.zeros(2), torch.zeros(2))


def test_ranking_metrics_report_every_task_and_the_reasons():
    logits, labels, weights, groups = rows(200)
    both = torch.stack([labels, torch.ones(200)], dim=1)
    both[:50, 1] = torch.nan
    metrics = RankingMetrics(["click", "buy"])
    metrics.update(logits[:, None].repeat(1, 2), both, weights, groups)
    found = metrics.compute()
    assert set(found["click"]) == {
        "ne", "auc", "gauc", "logloss", "calibration", "base_rate", "rows",
        "gauc_groups", "gauc_skipped",
    }  # fmt: skip
    assert found["click"]["auc"] == pytest.approx(
        roc_auc_score(labels, logits, sample_weight=weights)
    )
    assert (found["buy"]["rows"], found["buy"]["auc"], found["buy"]["base_rate"]) == (150, None, 1)
    assert found["buy"]["undefined"]["ne"] == "one class only (all positive)"
    assert sum(b["rows"] for b in metrics.calibration_bins()["buy"]) == 150
    metrics.reset()
    assert metrics.compute()["click"]["rows"] == 0
