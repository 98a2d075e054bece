"""The Signal Transformer: shapes, masks, positions, saving, and plain arrays in."""

import numpy as np
import pytest
import torch

from crema_lib.data.leads import LEADS
from crema_lib.errors import CremaError
from crema_lib.sit import SIZES, SiT, sincos


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def small(**options):
    return SiT(**{"width": 32, "depth": 3, "heads": 2, "fs": 100, "seconds": 4, **options}).eval()


both_tokens = pytest.mark.parametrize("tokens", ["time", "lead"])


@both_tokens
@pytest.mark.parametrize("stem", ["patch", "conv"])
@pytest.mark.parametrize(
    ("fs", "seconds", "leads", "patch"), [(100, 10, LEADS, 25), (250, 4, ("II",), 50), (500, 2, ("I", "II", "V2"), 20)]
)
def test_any_rate_length_and_leads(stem, fs, seconds, leads, patch, tokens):
    model = small(fs=fs, seconds=seconds, leads=leads, patch=patch, stem=stem, tokens=tokens)
    x = torch.randn(2, len(leads), fs * seconds)
    each = len(leads) if tokens == "lead" else 1
    assert model(x).shape == (2, each * fs * seconds // patch, 32)
    assert model.features(x, readout="layers").shape == (2, 96)
    assert model.features(x, readout="moments").shape == (2, 288) == (2, model.feature_size("moments"))
    assert model(x[:, :, : 4 * patch]).shape == (2, each * 4, 32), "shorter inputs are allowed"


@both_tokens
def test_moments_are_means_deviations_and_steps_over_time(tokens):
    model = small(tokens=tokens, cls_token=tokens == "time").eval()
    x = torch.randn(2, 12, 400)
    found = model.features(x, readout="moments")
    assert torch.equal(found[:, : found.shape[1] // 3], model.features(x, readout="layers"))
    last = model(x)[:, model.cls is not None :].view(2, -1, 16, 32)
    deviation = [[lead.std(dim=0, correction=0) for lead in record] for record in last]
    step = [[(lead[1:] - lead[:-1]).abs().mean(dim=0) for lead in record] for record in last]
    expected = torch.stack([torch.cat([torch.stack(a).mean(0), torch.stack(b).mean(0)]) for a, b in zip(deviation, step, strict=True)])
    torch.testing.assert_close(found[:, -64:], expected, rtol=1e-4, atol=1e-5)


def test_moments_of_one_token_have_a_slope():
    model = small()
    x = torch.randn(2, 12, 25, requires_grad=True)
    model.features(x, readout="moments").sum().backward()
    assert x.grad.isfinite().all()


def test_tokens_of_one_lead_are_what_they_say():
    model = small(tokens="lead", depth=0, scale=tuple(range(1, 13)))
    x = torch.randn(2, 12, 400)
    tokens = model(x).view(2, 12, 16, 32)
    for lead, n in ((0, 0), (4, 7), (11, 15)):
        patch = x[1, lead, 25 * n : 25 * n + 25] / (lead + 1)
        expected = model.norm(model.stem(patch) + model.positions[n] + model.stem_leads[lead])
        torch.testing.assert_close(tokens[1, lead, n], expected)
    for visible in (torch.tensor([[2, 5]] * 2), torch.tensor([[[2, 5]] * 12] * 2)):
        torch.testing.assert_close(model(x, visible=visible).view(2, 12, 2, 32), tokens[:, :, [2, 5]])
    own = torch.arange(12)[None, :, None].expand(2, -1, -1)
    torch.testing.assert_close(model(x, visible=own)[:, :, None], torch.stack([tokens[:, i, i] for i in range(12)], 1)[:, :, None])


def test_the_state_of_a_model_with_time_tokens_is_as_it_was():
    assert not any("stem_leads" in key for key in small().state_dict())
    assert not any("missing" in key for key in small(tokens="lead").state_dict())


def test_sizes_are_those_of_vit():
    assert [SIZES[s]["width"] for s in ("ti", "s", "b")] == [192, 384, 768]
    count = sum(p.numel() for block in SiT.of_size("ti").blocks for p in block.parameters())
    assert count == 12 * (12 * 192**2 + 13 * 192), "12 blocks of 12 d^2 + 13 d weights (Dosovitskiy et al. 2021)"


def test_patchify_is_what_it_says_and_back():
    model = small()
    x = torch.randn(2, 12, 400)
    patches = model.patchify(x)
    assert torch.equal(patches[1, 3], x[1, :, 75:100].flatten())
    assert torch.equal(model.unpatchify(patches), x)


def test_positions_against_a_loop():
    codes = sincos(7, 10)
    for n in range(7):
        for k in range(5):
            angle = n / 100 ** (2 * k / 10)
            assert codes[n, k] == pytest.approx(np.sin(angle), abs=1e-6)
            assert codes[n, 5 + k] == pytest.approx(np.cos(angle), abs=1e-6)


@both_tokens
@pytest.mark.parametrize("stem", ["patch", "conv"])
def test_hidden_patches_leave_no_trace(stem, tokens):
    model = small(stem=stem, tokens=tokens)
    x = torch.randn(2, 12, 400)
    visible = torch.tensor([[0, 3, 9], [1, 2, 15]])
    other = torch.randn_like(x)
    patches, others = model.patchify(x), model.patchify(other)
    kept = others.clone()
    for i in range(2):
        kept[i, visible[i]] = patches[i, visible[i]]
    assert torch.equal(model(x, visible=visible), model(model.unpatchify(kept), visible=visible))


def test_hidden_patches_of_one_lead_leave_no_trace():
    model = small(tokens="lead")
    x = torch.randn(2, 12, 400)
    visible = torch.rand(2, 12, 16).argsort(2)[:, :, :5]
    shown = torch.zeros(2, 12, 16, dtype=torch.bool).scatter(2, visible, True).repeat_interleave(25, dim=2)
    assert torch.equal(model(x, visible=visible), model(torch.where(shown, x, torch.randn_like(x)), visible=visible))
    assert not torch.equal(model(x, visible=visible), model(torch.where(shown, -x, x), visible=visible))


@both_tokens
def test_encoding_all_patches_as_visible_changes_nothing(tokens):
    model = small(tokens=tokens)
    x = torch.randn(2, 12, 400)
    torch.testing.assert_close(model(x, visible=torch.arange(16).expand(2, 16)), model(x))


@both_tokens
def test_missing_leads_cannot_matter_but_are_known(tokens):
    model = small(tokens=tokens)
    if tokens == "time":
        torch.nn.init.normal_(model.missing)
    x, mask = torch.randn(2, 12, 400), torch.ones(2, 12, dtype=torch.bool)
    mask[:, 4] = False
    garbage = x.clone()
    garbage[:, 4] = 1e3
    assert torch.equal(model(x, mask), model(garbage, mask))
    flat = x.clone()
    flat[:, 4] = 0
    assert not torch.allclose(model(flat), model(flat, mask)), "a flat lead is not a missing one"
    torch.testing.assert_close(model(x), model(x, torch.ones_like(mask)))


@pytest.mark.parametrize("cls_token", [False, True])
def test_missing_leads_of_one_lead_tokens_are_as_if_they_were_not_there(cls_token):
    model, kept = small(tokens="lead", cls_token=cls_token), [0, 1, 7]
    fewer = small(tokens="lead", cls_token=cls_token, leads=("I", "II", "V2"))
    state = model.state_dict()
    fewer.load_state_dict(state | {key: state[key][kept] for key in ("scale", "stem_leads")})
    x, mask = torch.randn(2, 12, 400), torch.zeros(2, 12, dtype=torch.bool)
    mask[:, kept] = True
    for readout in model.readouts:
        torch.testing.assert_close(model.features(x, mask, readout), fewer.features(x[:, kept], None, readout))
    visible = torch.rand(2, 12, 16).argsort(2)[:, :, :5]
    ours, theirs = model.features(x, mask, visible=visible), fewer.features(x[:, kept], visible=visible[:, kept])
    torch.testing.assert_close(ours, theirs)
    tokens = model(x, mask)[:, cls_token:].view(2, 12, 16, 32)
    torch.testing.assert_close(tokens[:, 2:7], model.features(x, mask)[:, None, None].expand(2, 5, 16, 32))
    for mask[0, 5] in (False, True):  # in inference what no record has is not computed, and what one of them has is
        with torch.inference_mode():
            fast = model(x, mask, visible), *model(x, mask, layers=[0, 1])
        for one, other in zip(fast, (model(x, mask, visible), *model(x, mask, layers=[0, 1])), strict=True):
            torch.testing.assert_close(one.clone(), other)
    mask[0, 5] = False
    maps = model.attention(x, mask)[..., cls_token:].unflatten(-1, (12, 16))
    assert not maps[..., ~mask[0], :].any() and maps[..., kept, :].all()
    mask[:] = False
    assert model.features(x, mask).isfinite().all(), "a record without any lead"


@both_tokens
def test_scale_divides_leads(tokens):
    plain, scaled = small(tokens=tokens), small(tokens=tokens, scale=tuple(range(1, 13)))
    scaled.load_state_dict({**plain.state_dict(), "scale": scaled.scale})
    x = torch.randn(1, 12, 400)
    torch.testing.assert_close(scaled(x * torch.arange(1.0, 13)[:, None]), plain(x))


@both_tokens
def test_cls_token(tokens):
    model = small(cls_token=True, tokens=tokens)
    x = torch.randn(2, 12, 400)
    assert model(x).shape == (2, 1 + (16 if tokens == "time" else 192), 32)
    assert torch.equal(model.features(x, readout="cls"), model(x)[:, 0])
    torch.testing.assert_close(model.features(x), model(x)[:, 1:].mean(1))
    with pytest.raises(CremaError, match="unknown readout 'cls'"):
        small().features(x, readout="cls")


def test_attention_is_what_the_blocks_use():
    model = small()
    x = torch.randn(1, 12, 400)
    maps = model.attention(x)
    assert maps.shape == (3, 1, 2, 16, 16)
    torch.testing.assert_close(maps.sum(-1), torch.ones(3, 1, 2, 16))
    attn = model.blocks[0].attn
    tokens = model.blocks[0].norm1(model.stem(model.patchify(x)) + model.positions)
    value = attn.qkv(tokens)[..., 64:].view(1, 16, 2, 16).transpose(1, 2)
    expected = attn.proj((maps[0] @ value).transpose(1, 2).reshape(1, 16, 32))
    torch.testing.assert_close(attn(tokens), expected, atol=1e-5, rtol=1e-4)


@both_tokens
def test_save_and_load(tmp_path, tokens):
    model = small(scale=(0.5,) * 12, stem="conv", tokens=tokens)
    torch.nn.init.normal_(model.missing if tokens == "time" else model.stem_leads)
    model.save_pretrained(tmp_path)
    again = SiT.from_pretrained(tmp_path).eval()
    assert again.tokens == tokens
    x = torch.randn(1, 12, 400)
    assert torch.equal(model(x), again(x))
    assert (again.fs, again.seconds, again.leads, again.patch, tuple(again.band)) == (100, 4, LEADS, 25, (0.5, 40.0))


@both_tokens
def test_embed_takes_any_rate_unit_and_order(tokens):
    model = small(tokens=tokens)
    t = np.arange(2000) / 500
    signal = np.stack([np.sin(2 * np.pi * (3 + i) * t) for i in range(12)]).astype(np.float32)
    plain = model.embed(signal, fs=500)
    assert plain.shape == (1, 32) and plain.dtype == np.float32
    order = np.random.default_rng(0).permutation(12)
    np.testing.assert_allclose(model.embed(1000 * signal[order], fs=500, leads=[LEADS[i] for i in order], unit="uV"), plain, atol=1e-5)
    batch = model.embed(np.stack([signal, 2 * signal]), fs=500, batch_size=1)
    np.testing.assert_allclose(batch[0], plain[0], atol=1e-5)
    slow = model.embed(np.stack([np.sin(2 * np.pi * (3 + i) * np.arange(400) / 100) for i in range(12)]), fs=100)
    assert np.corrcoef(slow[0], plain[0])[0, 1] > 0.995, "the same signal at another rate"


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        ({"unit": "mmHg"}, "unknown unit"),
        ({"fs": 0}, "must be positive"),
        ({"leads": ["X"] * 12}, "no known lead"),
        ({"leads": [*LEADS[:11], "Z"]}, "no known lead is called Z: known are I II .*; take other rows out of the array"),
        ({"leads": [*LEADS[:3], "-aVR", *LEADS[4:]]}, "no known lead is called -aVR"),
        ({"signal": np.full((12, 1000), np.nan)}, "NaN"),
        ({"unit": "V"}, "the leads measure .* mV from lowest to highest value, those of an ECG 0.05 to 20 mV: the unit is another than V"),
        ({"unit": "uV"}, "the unit is another than uV"),
        ({"signal": np.zeros((12, 1000))}, "the leads measure 0 mV"),
    ],
)
def test_embed_refuses(call, sentence):
    with pytest.raises(CremaError, match=sentence):
        small().embed(**{"signal": np.random.default_rng(0).normal(size=(12, 1000)), "fs": 100, **call})


def test_flat_rows_do_not_hide_the_size_of_the_others():
    signal = np.random.default_rng(0).normal(size=(2, 12, 1000))
    signal[0, 3:] = np.arange(9)[:, None]
    signal[1] *= 1000
    assert small().embed(signal, fs=100).shape == (2, 32), "one recording of another size is no error in the unit of all"
    assert small().embed(signal[0], fs=100).shape == (1, 32)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"patch": 33}, "no whole number of patches"),
        ({"leads": ("I", "V9")}, "unknown leads"),
        ({"width": 33}, "width 33"),
        ({"stem": "fft"}, "unknown stem"),
        ({"tokens": "beat"}, "unknown tokens 'beat': known are time, lead"),
        ({"scale": (1.0,)}, "one positive number a lead"),
    ],
)
def test_bad_configurations(options, sentence):
    with pytest.raises(CremaError, match=sentence):
        small(**options)


@pytest.mark.parametrize("shape", [(1, 11, 400), (12, 400), (1, 12, 410), (1, 12, 425), (1, 12, 0)])
def test_signals_that_do_not_fit(shape):
    with pytest.raises(CremaError, match="this SiT takes"):
        small()(torch.zeros(shape))


def test_corrupted_and_foreign_models(tmp_path):
    with pytest.raises(CremaError, match="holds no Signal Transformer"):
        SiT.from_pretrained(tmp_path)
    small().save_pretrained(tmp_path)
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace('"width": 32', '"width": 64'))
    with pytest.raises(CremaError, match="holds no Signal Transformer"):
        SiT.from_pretrained(tmp_path)
    for depth in (2, 4):  # weights that nothing asks for, and blocks without weights
        (tmp_path / "config.json").write_text(config.replace('"depth": 3', f'"depth": {depth}'))
        with pytest.raises(CremaError, match="holds no Signal Transformer"):
            SiT.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(config)
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CremaError, match="holds no Signal Transformer"):
        SiT.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(whole)
    assert not SiT.from_pretrained(tmp_path).training


def test_arrays_that_are_no_recording():
    model = small().train()
    for shape, sentence in (
        ((12,), "is no recording"),
        ((0, 12, 500), "is no recording"),
        ((12, 0), "too short"),
        ((12, 99), "0.99 s are too short"),
    ):
        with pytest.raises(CremaError, match=sentence):
            model.embed(np.zeros(shape), fs=100)
    with pytest.raises(CremaError, match="unknown readout 'nothing'"):
        model.embed(np.random.default_rng(0).normal(size=(12, 500)), fs=100, readout="nothing")
    assert model.training, "as it was"
