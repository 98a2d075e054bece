"""Scores averaged over training runs, against averaging by hand."""

import numpy as np

from crema_lib import evaluation, metrics


def test_a_mean_over_seeds_is_that_of_the_scores_and_of_each_resample():
    rng = np.random.default_rng(0)
    targets, patients = rng.integers(0, 2, (60, 3)), np.arange(60) // 2
    runs = [{name: targets * shift + rng.normal(size=(60, 3)) for name, shift in (("a", 0.5), ("b", 1.5))} for _ in range(3)]
    results = [metrics.compare(targets, scores, patients, list("xyz"), n=50, seed=4) for scores in runs]
    found = evaluation.mean(results)
    gains = [result.gain("b", "a") for result in results]
    assert np.isclose(found.gain("b", "a").value, np.mean([gain.value for gain in gains]))
    macros = np.mean([result.resampled["a"].mean(1) for result in results], axis=0)
    np.testing.assert_allclose([found.macro("a").low, found.macro("a").high], np.quantile(macros, [0.025, 0.975]))
    assert found.macro("a").high - found.macro("a").low < np.mean([one.macro("a").high - one.macro("a").low for one in results])
    assert evaluation.mean(results[:1]).macro("a") == results[0].macro("a")
