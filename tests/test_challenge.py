"""The Challenge metric against a literal reading of the published algorithm, and its tables."""

import numpy as np
import pandas as pd
import pytest

from crema_lib.data import labels
from crema_lib.errors import CremaError
from crema_lib.metrics import challenge


def reference(rewards, truth, called, normal):
    """Loops over recordings and pairs of classes, as the Challenge describes it (Perez Alday et al. 2020, section 2.4)."""

    def confusion(calls):
        a = np.zeros((truth.shape[1], truth.shape[1]))
        for y, o in zip(truth, calls, strict=True):
            share = max(np.sum(np.logical_or(y, o)), 1)
            for j in np.flatnonzero(y):
                for k in np.flatnonzero(o):
                    a[j, k] += 1 / share
        return np.nansum(rewards * a)

    idle = np.zeros_like(truth)
    idle[:, normal] = 1
    observed, correct, inactive = confusion(called), confusion(truth), confusion(idle)
    return (observed - inactive) / (correct - inactive) if correct != inactive else 0.0


def drawn(n=120, share=0.1, seed=0):
    rng = np.random.default_rng(seed)
    codes = list(challenge.weights().index)
    truth = rng.random((n, len(codes))) < share
    return codes, truth.astype(int), np.where(rng.random(truth.shape) < 0.1, ~truth, truth).astype(int)


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5])
def test_metric_equals_the_published_algorithm(share):
    codes, truth, called = drawn(share=share)
    rewards = challenge.weights().to_numpy()
    expected = reference(rewards, truth, called, codes.index(challenge.NORMAL))
    assert challenge.metric(truth, called, codes) == pytest.approx(expected, abs=1e-12)
    counts = np.random.default_rng(1).integers(0, 3, (4, len(truth)))
    found = challenge.metric(truth, called, codes, counts)
    again = [np.repeat(np.arange(len(truth)), c) for c in counts]
    np.testing.assert_allclose(found, [reference(rewards, truth[r], called[r], codes.index(challenge.NORMAL)) for r in again], atol=1e-12)
    assert challenge.metric(truth, called, codes, counts[:1]).shape == (1,)


def test_random_rewards_and_another_normal_class():
    rng = np.random.default_rng(2)
    rewards = rng.random((5, 5))
    truth, called = rng.integers(0, 2, (2, 60, 5))
    table = pd.DataFrame(rewards, list("abcde"), list("abcde"))
    found = challenge.metric(truth, called, list("abcde"), rewards=table, normal="d")
    assert found == pytest.approx(reference(rewards, truth, called, 3), abs=1e-12)
    order = [3, 0, 4, 2, 1]
    shuffled = challenge.metric(truth[:, order], called[:, order], [list("abcde")[i] for i in order], rewards=table, normal="d")
    assert shuffled == pytest.approx(found, abs=1e-12), "the codes name the columns"


def test_right_is_one_and_doing_nothing_is_zero():
    codes, truth, called = drawn()
    idle = np.tile(np.asarray(codes) == challenge.NORMAL, (len(truth), 1)).astype(int)
    assert challenge.metric(truth, truth, codes) == pytest.approx(1) and challenge.metric(truth, idle, codes) == pytest.approx(0)
    assert challenge.metric(idle, idle, codes) == 0, "as the reference has it"
    assert challenge.metric(truth, np.zeros_like(truth), codes) < 0
    undecided = called.astype(float)
    undecided[:, 3] = np.nan
    called[:, 3] = 0
    assert challenge.metric(truth, undecided, codes) == challenge.metric(truth, called, codes)


def test_tables_agree_with_each_other_and_with_the_statements():
    rewards, classes = challenge.weights(), challenge.classes()
    assert rewards.shape == (26, 26) and list(rewards.index) == list(rewards.columns) == list(classes.index)
    assert (rewards.to_numpy() == rewards.to_numpy().T).all() and (np.diag(rewards) == 1).all()
    assert rewards.loc["164889003", "426783006"] == 0.25 and rewards.loc["733534002|164909002", "164917005"] == 0.375
    assert classes["abbreviation"].is_unique
    used = [code for joined in classes["scp"] for code in joined.split(";") if code]
    assert len(used) == len(set(used)) and set(used) <= set(labels.statements().index)


def test_scores_of_a_class_are_the_largest_of_its_statements():
    names = ["NDT", "PVC", "SR", "LOWT", "AFIB"]
    scores, codes = challenge.from_statements(np.array([[0.2, 1, 0.6, 0.3, 0.1], [0.5, 1, 0.2, 0.4, 0.9]]), names)
    found = dict(zip(challenge.classes().loc[codes, "abbreviation"], scores.T.tolist(), strict=True))
    assert found == {"AF": [0.1, 0.9], "NSR": [0.6, 0.2], "TAb": [0.3, 0.5]}
    present = pd.Series(["NORM;SR", "SR;NDT", "NT_;LOWT;AFIB", "PVC", "SVARR;CLBBB"]).str.get_dummies(";")
    targets, codes = challenge.from_statements(present.to_numpy(), present.columns)
    called = challenge.classes().loc[codes, "abbreviation"].to_numpy()
    assert [set(called[row == 1]) for row in targets] == [{"NSR"}, {"NSR", "TAb"}, {"TAb", "AF"}, set(), {"PAC", "LBBB"}]


def test_counts_on_ptbxl_are_those_of_the_challenge(real_data):
    """The Challenge holds PTB-XL 1.0.1, with 38 recordings more than 1.0.3: no class may differ by more."""
    import ast

    table = pd.read_csv(real_data / "ptb-xl" / "ptbxl_database.csv")
    present = table["scp_codes"].map(lambda text: ";".join(ast.literal_eval(text))).str.get_dummies(";")
    targets, codes = challenge.from_statements(present.to_numpy(), present.columns)
    published = challenge.classes().loc[codes, "challenge_records"].to_numpy()
    assert ((published - targets.sum(0) >= 0) & (published - targets.sum(0) <= 38)).all()
    assert (published == targets.sum(0)).sum() >= 11


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda c, t, o: challenge.metric(t, o[:, :3], c), "do not fit"),
        (lambda c, t, o: challenge.metric(t, o, ["1", *c[1:]]), "no reward is known for class 1"),
        (lambda c, t, o: challenge.metric(t[:, :3], o[:, :3], c[:3]), "call of who does nothing"),
        (lambda c, t, o: challenge.metric(t, 0.5 * o, c), "choose thresholds"),
    ],
)
def test_bad_input_is_one_sentence(call, sentence):
    with pytest.raises(CremaError, match=sentence):
        call(*drawn())
