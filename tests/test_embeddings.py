"""Embedding of lead subsets."""

import numpy as np
import pytest
import torch

from crema_lib.data.leads import LEADS, SUBSETS
from crema_lib.data.simulate import simulated_store
from crema_lib.embeddings import embed_store
from crema_lib.errors import CremaError
from crema_lib.shift import corrupt
from crema_lib.sit import SiT
from crema_lib.xresnet import XResNet1d


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return simulated_store(tmp_path_factory.mktemp("data") / "store", 30, seed=0, fs=100, seconds=5)


def encoder(**options):
    torch.manual_seed(0)
    model = SiT(**{"fs": 100, "seconds": 5, "width": 32, "depth": 2, "heads": 2, **options})
    if model.tokens == "time":
        torch.nn.init.normal_(model.missing)  # as training leaves it: otherwise the lead mask would not show
    return model


def test_the_table_of_subsets():
    assert [(n, len(leads)) for n, leads in SUBSETS.items()] == [(n, n) for n in (12, 8, 6, 4, 3, 2, 1)]
    assert all(set(leads) <= set(LEADS) for leads in SUBSETS.values())
    assert SUBSETS is corrupt.SUBSETS


@pytest.mark.parametrize("tokens", ["time", "lead"])
@pytest.mark.parametrize("n", [6, 3, 1])
def test_leads_that_are_not_shown_play_no_part(store, tokens, n):
    model, kept = encoder(tokens=tokens).eval(), torch.from_numpy(np.isin(LEADS, SUBSETS[n]))
    found = embed_store(model, store, range(10), leads=SUBSETS[n])
    signal = torch.where(kept[:, None], store.read(range(10)), torch.zeros(()))
    with torch.no_grad():
        np.testing.assert_allclose(found, model.features(signal, kept.expand(10, -1)), atol=1e-6)
    np.testing.assert_array_equal(found, embed_store(model, corrupt.Shifted(store, corrupt.keep_leads(SUBSETS[n])), range(10)))
    assert not np.allclose(found, embed_store(model, store, range(10)), atol=1e-3)


def test_a_convolutional_network_sees_zeros(store):
    torch.manual_seed(0)
    model = XResNet1d(fs=100, seconds=5, width=4, depth="xresnet1d50", hidden=16).eval()
    found = embed_store(model, store, range(6), leads=["II", "I"])
    with torch.no_grad():
        expected = model.features(torch.cat([store.read(range(6))[:, :2], torch.zeros(6, 10, 500)], dim=1), None, "mean")
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_all_leads_are_the_default(store, tmp_path):
    model = encoder()
    first = embed_store(model, store, cache=tmp_path)
    np.testing.assert_array_equal(embed_store(model, store, leads=SUBSETS[12], cache=tmp_path), first)
    assert len(list(tmp_path.iterdir())) == 1


def test_the_cache_tells_subsets_apart(store, tmp_path):
    model = encoder()
    lost = type(store)(store.path)
    lost.lead_mask[:, 7] = False  # then the leads of 3 that are there are those of 2
    for entries, (data, n) in enumerate([(store, 12), (store, 3), (store, 2), (lost, 3), (lost, 12)], 1):
        found = [embed_store(model, data, leads=SUBSETS[n], cache=tmp_path) for _ in range(2)]
        np.testing.assert_array_equal(*found)
        np.testing.assert_array_equal(found[0], embed_store(model, data, leads=SUBSETS[n]))
        assert len(list(tmp_path.iterdir())) == entries


def test_leads_that_cannot_be_shown(store):
    for leads in (["V9"], [], "II", ["I", "v1"]):
        with pytest.raises(CremaError, match=r"the leads to show are .* give a list of one or more of I, II, III"):
            embed_store(encoder(), store, leads=leads)
    lost = type(store)(store.path)
    lost.lead_mask[[3, 5], 0] = False
    with pytest.raises(CremaError, match="2 records have none of the leads I: leave them out of the rows"):
        embed_store(encoder(), lost, leads=["I"])
    assert embed_store(encoder(), lost, [0, 1, 2], leads=["I"]).shape == (3, 32)
