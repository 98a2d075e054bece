"""The convolutional baseline: its published shape, its gradients, and that it can stand where a SiT stands."""

import pytest
import torch

from crema_lib.errors import CremaError
from crema_lib.xresnet import Bottleneck, XResNet1d

TINY = {"depth": "xresnet1d50", "width": 8, "hidden": 16}


def test_shape_of_the_published_network():
    net = XResNet1d()
    convolutions = [m for m in net.modules() if isinstance(m, torch.nn.Conv2d)]
    main = [c for name, c in net.named_modules() if isinstance(c, torch.nn.Conv2d) and "shortcut" not in name]
    assert len(main) == 3 + 3 * (3 + 4 + 23 + 3), "101 layers: a stem of three, 33 blocks of three (and the head)"
    assert len(convolutions) - len(main) == 1 + 3 * 0, "a projection only where the number of channels changes"
    assert 1.7e6 < sum(p.numel() for p in net.parameters()) < 2.0e6
    with torch.no_grad():
        assert net.eval().body(torch.zeros(2, 12, 1, 250)).shape == (2, 256, 1, 8), "five halvings of 250 samples"


def test_a_new_block_is_its_shortcut():
    block = Bottleneck(32, 8, 1, 5).eval()
    x = torch.randn(2, 32, 1, 20)
    torch.testing.assert_close(block(x), torch.relu(x))


def test_it_is_one_dimensional():
    body, x = XResNet1d(**TINY).eval().body, torch.randn(2, 12, 1, 101)
    weight = body[0][0].weight
    assert weight.shape == (32, 12, 1, 5)
    plain = torch.nn.functional.conv1d(x[:, :, 0], weight[:, :, 0], stride=2, padding=2)
    torch.testing.assert_close(body[0][0](x)[:, :, 0], plain, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(body[3](x)[:, :, 0], torch.nn.functional.max_pool1d(x[:, :, 0], 3, 2, 1))
    halved = body[4 + 3].shortcut[0](x)[:, :, 0]  # the first block of the second stage
    torch.testing.assert_close(halved, torch.nn.functional.avg_pool1d(x[:, :, 0], 2, ceil_mode=True))


def test_features_and_missing_leads():
    net = XResNet1d(scale=(0.2,) * 12, **TINY).eval()
    signal, mask = torch.randn(3, 12, 300), torch.ones(3, 12, dtype=torch.bool)
    mask[:, 4] = False
    other = signal.clone()
    other[:, 4] = 7
    features = net.features(signal, mask)
    assert features.shape == (3, net.feature_size()) == (3, 16)
    assert torch.equal(features, net.features(other, mask)), "what a missing lead holds does not matter"
    assert not torch.equal(features, net.features(other))
    torch.testing.assert_close(XResNet1d(**TINY).eval().features(signal).shape, features.shape)


def test_the_scale_divides():
    torch.manual_seed(0)
    net = XResNet1d(**TINY).eval()
    scaled = XResNet1d(scale=(2.0,) * 12, **TINY).eval()
    scaled.load_state_dict({**net.state_dict(), "scale": scaled.scale})
    signal = torch.randn(2, 12, 200)
    torch.testing.assert_close(scaled.features(2 * signal), net.features(signal))


def test_every_weight_learns():
    net = XResNet1d(**TINY)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    for _ in range(3):  # the first step only opens the blocks, whose last normalisation starts at zero
        net.features(torch.randn(4, 12, 128)).square().mean().backward()
        optimiser.step()
    assert [name for name, p in net.named_parameters() if torch.equal(p, before[name])] == []


def test_saved_and_read(tmp_path):
    net = XResNet1d(**TINY).eval()
    net.save_pretrained(tmp_path)
    signal = torch.randn(2, 12, 200)
    torch.testing.assert_close(XResNet1d.from_pretrained(str(tmp_path)).eval().features(signal), net.features(signal))


def test_what_it_refuses():
    with pytest.raises(CremaError, match="unknown depth 'resnet'"):
        XResNet1d(depth="resnet")
    with pytest.raises(CremaError, match="no tokens"):
        XResNet1d(**TINY).features(torch.zeros(1, 12, 100), visible=torch.zeros(1, 2, dtype=torch.int64))
