"""Heads that are computed: scikit-learn's answers on the same vectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neighbors import KNeighborsClassifier

from embedcache.errors import SettingError
from embedcache.heads.knn import KnnHead, fit_knn
from embedcache.heads.logistic import fit_logistic
from embedcache.loading import PooledData, Vectors
from embedcache.train_config import Run, TrainConfig
from embedcache.training import train, train_head

Pooled = Callable[..., PooledData]
PENALTIES = (1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0)
PROBABILITY, COEFFICIENT = 2e-3, 1e-2
"""Bounds on the largest difference of a probability, and of a coefficient relative to the largest."""


def standardised(data: PooledData, split: Vectors) -> np.ndarray:
    x = data.train.x.numpy().astype(np.float64)
    return (split.x.numpy() - x.mean(axis=0)) / x.std(axis=0)


def oracle(c: float) -> LogisticRegression:
    return LogisticRegression(C=c, tol=1e-10, max_iter=100_000)


def close(ours: torch.Tensor, theirs: np.ndarray) -> None:
    np.testing.assert_allclose(ours.numpy(), theirs, atol=COEFFICIENT * np.abs(theirs).max())


@pytest.mark.parametrize("c", PENALTIES)
def test_logistic_is_scikit_learns_multinomial_regression(pooled: Pooled, c: float) -> None:
    data = pooled(train=150, classes=4, channels=8)
    result = train_head(data, TrainConfig(head="logistic", c=c), 0)
    theirs = oracle(c).fit(standardised(data, data.train), data.train.y.numpy())
    close(result.state["weight"], theirs.coef_)
    intercept = result.state["bias"] - result.state["bias"].mean()  # softmax leaves a common shift free
    np.testing.assert_allclose(intercept, theirs.intercept_ - theirs.intercept_.mean(), atol=COEFFICIENT)
    assert result.test_logits is not None
    ours = torch.softmax(torch.from_numpy(result.test_logits), dim=1).numpy()
    np.testing.assert_allclose(ours, theirs.predict_proba(standardised(data, data.test)), atol=PROBABILITY)


def test_class_weights_are_scikit_learns(pooled: Pooled) -> None:
    data = pooled(train=150, classes=3, channels=8)
    few = np.flatnonzero(data.train.y.numpy() == 1)[4:]  # one class becomes rare
    keep = np.setdiff1d(np.arange(len(data.train)), few)
    rare = Vectors.held(data.train.x[keep], data.train.y[keep], data.train.sample_ids[keep])
    data = PooledData(rare, data.val, data.test, data.task, data.num_classes)
    x, y = standardised(data, data.train), data.train.y.numpy()
    result = train_head(data, TrainConfig(head="logistic", c=0.5, class_weights="balanced"), 0)
    theirs = LogisticRegression(C=0.5, tol=1e-10, max_iter=100_000, class_weight="balanced").fit(x, y)
    close(result.state["weight"], theirs.coef_)
    assert np.abs(theirs.coef_ - oracle(0.5).fit(x, y).coef_).max() > 5 * COEFFICIENT  # they matter here


def test_class_weights_of_several_labels_weigh_the_positives(pooled: Pooled) -> None:
    data = pooled("multilabel", train=150, classes=3, channels=8)
    x, y = standardised(data, data.train), data.train.y.numpy()
    result = train_head(data, TrainConfig(head="logistic", c=0.5, class_weights="balanced"), 0)
    for c in range(3):
        weight = (1 - y[:, c].mean()) / y[:, c].mean()
        theirs = oracle(0.5).fit(x, y[:, c], sample_weight=np.where(y[:, c] > 0, weight, 1.0))
        np.testing.assert_allclose(
            result.state["weight"][c].numpy(), theirs.coef_[0], atol=COEFFICIENT * np.abs(theirs.coef_).max()
        )


@pytest.mark.parametrize("c", PENALTIES)
def test_two_classes_are_a_binary_regression_with_twice_the_c(pooled: Pooled, c: float) -> None:
    """Softmax over both shares the slope w as w/2 and -w/2, whose penalty is half of w's."""
    data = pooled(train=150, classes=2)
    result = train_head(data, TrainConfig(head="logistic", c=c), 0)
    theirs = oracle(2 * c).fit(standardised(data, data.train), data.train.y.numpy())
    close(result.state["weight"][1:] - result.state["weight"][:1], theirs.coef_)
    assert result.test_logits is not None
    ours = torch.softmax(torch.from_numpy(result.test_logits), dim=1).numpy()
    np.testing.assert_allclose(ours, theirs.predict_proba(standardised(data, data.test)), atol=PROBABILITY)


@pytest.mark.parametrize("c", PENALTIES)
def test_several_labels_are_one_regression_a_class(pooled: Pooled, c: float) -> None:
    data = pooled("multilabel", train=150, classes=4)
    result = train_head(data, TrainConfig(head="logistic", c=c), 0)
    theirs = OneVsRestClassifier(oracle(c)).fit(standardised(data, data.train), data.train.y.numpy())
    close(result.state["weight"], np.concatenate([e.coef_ for e in theirs.estimators_]))
    assert result.test_logits is not None
    ours = torch.sigmoid(torch.from_numpy(result.test_logits)).numpy()
    np.testing.assert_allclose(ours, theirs.predict_proba(standardised(data, data.test)), atol=PROBABILITY)


def test_a_class_that_train_never_shows_gets_no_probability(pooled: Pooled) -> None:
    data = pooled(train=150, classes=3)
    absent = PooledData(data.train, data.val, data.test, task="classification", num_classes=5)
    for head in ("logistic", "knn"):
        logits = train_head(absent, TrainConfig(head=head, c=10.0), 0).test_logits
        assert logits is not None
        assert set(logits.argmax(axis=1)) <= {0, 1, 2}


def test_the_strongest_and_weakest_penalty_end(pooled: Pooled) -> None:
    """Separable classes have no optimum without a penalty; the search must end all the same."""
    data = pooled(train=60, classes=3, channels=40, noise=0.0)
    weak, strong = (train_head(data, TrainConfig(head="logistic", c=c), 0) for c in (1e8, 1e-8))
    assert weak.test["accuracy"] > 0.5
    assert float(strong.state["weight"].abs().max()) < 1e-5
    assert all(torch.isfinite(v).all() for v in weak.state.values())


@pytest.mark.parametrize("k", [1, 2, 5, 20])
def test_neighbours_are_scikit_learns_where_votes_do_not_draw(pooled: Pooled, k: int) -> None:
    data = pooled(train=150, other=200, classes=4)
    result = train_head(data, TrainConfig(head="knn", k=k), 0)
    theirs = KNeighborsClassifier(k, metric="cosine").fit(standardised(data, data.train), data.train.y.numpy())
    share = theirs.predict_proba(standardised(data, data.test))
    assert result.test_logits is not None
    ours = torch.sigmoid(torch.from_numpy(result.test_logits)).numpy()
    np.testing.assert_allclose(ours, share, atol=2e-3)  # a vote is one plus a thousandth of its similarity
    ordered = np.sort(share, axis=1)
    clear = ordered[:, -1] > ordered[:, -2]
    assert clear.sum() > 40
    np.testing.assert_array_equal(ours.argmax(axis=1)[clear], share.argmax(axis=1)[clear])


@pytest.mark.parametrize("k", [1, 5])
def test_neighbours_of_several_labels_vote_class_by_class(pooled: Pooled, k: int) -> None:
    data = pooled("multilabel", train=150, classes=3)
    result = train_head(data, TrainConfig(head="knn", k=k, standardise=False), 0)
    theirs = KNeighborsClassifier(k, metric="cosine").fit(data.train.x.numpy(), data.train.y.numpy())
    share = np.stack([p[:, 1] for p in theirs.predict_proba(data.test.x.numpy())], axis=1)
    assert result.test_logits is not None
    np.testing.assert_allclose(torch.sigmoid(torch.from_numpy(result.test_logits)), share, atol=2e-3)
    np.testing.assert_array_equal(result.test_logits > 0, share > 0.5)  # k is odd: no draw


def test_a_draw_goes_to_the_closer_neighbours() -> None:
    x = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
    head = fit_knn(x, torch.tensor([0, 0, 1, 1]), 2, TrainConfig(k=4))
    assert head(torch.tensor([[1.0, 0.2], [0.2, 1.0]])).argmax(dim=1).tolist() == [0, 1]


def test_more_neighbours_than_samples_are_all_of_them(pooled: Pooled) -> None:
    data = pooled(train=10)
    all_of_them, more = (train_head(data, TrainConfig(head="knn", k=k), 0).test_logits for k in (10, 500))
    np.testing.assert_array_equal(all_of_them, more)


def test_search_block_by_block_is_the_search_at_once(pooled: Pooled, monkeypatch: pytest.MonkeyPatch) -> None:
    data = pooled(train=150, other=90)
    head = KnnHead(data.train.x, torch.nn.functional.one_hot(data.train.y, 3).float(), 7)
    whole = head(data.test.x)
    for rows, columns in ((1, 150), (13, 7), (90, 1), (8, 40)):
        monkeypatch.setattr("embedcache.heads.knn._BLOCK", rows)
        monkeypatch.setattr("embedcache.heads.knn._TRAIN_BLOCK", columns)
        torch.testing.assert_close(head(data.test.x), whole, rtol=1e-4, atol=1e-5)
    assert head(data.test.x[:0]).shape == (0, 3)


def test_logistic_regression_block_by_block_is_that_at_once(pooled: Pooled, monkeypatch: pytest.MonkeyPatch) -> None:
    data = pooled(train=150)
    whole = fit_logistic(data.train.x, data.train.y, 3, TrainConfig(c=0.1))
    monkeypatch.setattr("embedcache.heads.logistic._BLOCK", 17)
    parts = fit_logistic(data.train.x, data.train.y, 3, TrainConfig(c=0.1))
    torch.testing.assert_close(parts.weight, whole.weight, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("head", ["logistic", "knn"])
def test_there_is_no_chance_and_equal_runs_share_one_fit(
    pooled: Pooled, head: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits: list[float] = []
    from embedcache import fitted_training

    original = fitted_training._fit

    def counted(data: Any, spec: Any, config: TrainConfig) -> Any:
        fits.append(config.c)
        return original(data, spec, config)

    monkeypatch.setattr(fitted_training, "_fit", counted)
    config = TrainConfig(head=head, k=3)
    results = train(pooled(), [Run(config, 0), Run(config, 1), Run(config.with_(c=3.0, k=4), 1)])
    assert len(fits) == 2
    assert results[0].test == results[1].test
    assert results[0].test != results[2].test
    for result in results:
        assert (result.best_epoch, result.curve, result.failed) == (0, [], None)


def test_vectors_that_do_not_fit_are_said(make: Callable[..., Any], blobs: Callable[..., Any]) -> None:
    from embedcache.ensemble import Ensemble
    from embedcache.loading import load_pooled

    x, label, split = blobs()
    data = load_pooled(Ensemble([make("a", x, label, split)]), budget_bytes=0)
    with pytest.raises(SettingError, match=r"'knn' needs all training vectors in memory.*--memory"):
        train_head(data, TrainConfig(head="knn"), 0)
