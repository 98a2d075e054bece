"""Maps against their formulas, scikit-learn and slow references; pictures of maps."""

import re
import warnings

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_hex
from sklearn import manifold

from crema_lib import maps, plots
from crema_lib.errors import CremaError
from crema_lib.plots.maps import NOTE, UNKNOWN


def blobs(records=120, features=12, seed=0, groups=3, noise=1.0):
    """Features around one centre a group, groups (records,) as letters, and patients with two records each."""
    rng = np.random.default_rng(seed)
    group = np.arange(records) % groups
    x = rng.normal(size=(groups, features))[group] * 4 + noise * rng.normal(size=(records, features))
    return x.astype(np.float32), np.array(list("ABCDEFGH"))[group], np.arange(records) // groups // 2 * groups + group


def cosine(x):
    z = (x - x.mean(0)) / x.std(0)
    z = z / np.linalg.norm(z, axis=1, keepdims=True)
    return z @ z.T


@pytest.fixture(scope="module")
def fitted():
    x, group, _ = blobs()
    return x, group, maps.fit_map(x, neighbours=10)


# --- the map


def test_groups_that_are_apart_stay_apart_and_new_records_join_theirs(fitted, capfd):
    _, group, fit = fitted
    assert fit.embedding.shape == (120, 2)
    new, its, _ = blobs(60, seed=0, noise=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        placed = fit.transform(new)
    centres = np.stack([fit.embedding[group == g].mean(0) for g in "ABC"])
    nearest = np.linalg.norm(placed[:, None] - centres, axis=2).argmin(1)
    assert (np.array(list("ABC"))[nearest] == its).all()
    assert capfd.readouterr() == ("", "")


def test_a_seed_gives_one_map_and_no_warning(fitted, capfd):
    x, _, fit = fitted
    before = fit.embedding.copy()
    first = fit.transform(x[:7] + 0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again, other = maps.fit_map(x, neighbours=10), maps.fit_map(x, neighbours=10, seed=1)
    np.testing.assert_array_equal(again.embedding, before)
    np.testing.assert_array_equal(again.transform(x[:7] + 0.1), first)
    np.testing.assert_array_equal(fit.embedding, before)
    assert np.abs(other.embedding - before).max() > 0.1
    assert capfd.readouterr() == ("", "")


def test_another_start_makes_another_map(fitted):
    x, _, fit = fitted
    other = maps.fit_map(x, neighbours=10, start="random")
    assert maps.stability({"a": fit.embedding, "b": other.embedding})[0]["disparity"][0] > 1e-6


def test_the_threads_of_torch_stay_what_they_were(fitted):
    x, _, fit = fitted
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            maps.fit_map(x, neighbours=10)
            assert torch.get_num_threads() == threads
            fit.transform(x[:3])
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_equal_records_and_few_features_are_no_trouble():
    x = np.repeat(blobs(30, features=2)[0], 2, axis=0)
    fit = maps.fit_map(x, neighbours=5)
    assert np.isfinite(fit.embedding).all() and np.isfinite(fit.transform(x[:1])).all()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"neighbours": 120}, "120 neighbours cannot be found: with these records the number must be from 1 to 119"),
        ({"neighbours": 1}, "at least 2 neighbours"),
        ({"start": "end"}, "unknown start 'end': known are pca, random"),
    ],
)
def test_parameters_out_of_range(options, sentence):
    with pytest.raises(CremaError, match=sentence):
        maps.fit_map(blobs()[0], **options)


def test_features_that_make_no_map(fitted):
    x, _, fit = fitted
    with pytest.raises(CremaError, match=r"shape \(2, 12\) are too few"):
        maps.fit_map(x[:2])
    with pytest.raises(CremaError, match=r"shape \(120, 1\) are too few"):
        maps.fit_map(x[:, :1])
    with pytest.raises(CremaError, match="1 of the given records have features that are NaN"):
        maps.fit_map(np.where(np.arange(120)[:, None] == 3, np.nan, x))
    with pytest.raises(CremaError, match="fitted on 12 features a record, not 5"):
        fit.transform(x[:, :5])


def test_one_label_only():
    table = pd.DataFrame({"labels": ["NORM;SR", "IMI;CLBBB;AFIB", "", "AFIB;PVC", "IMI;AMI"]})
    assert maps.one_label(table, "super").tolist() == ["NORM", "", "", "", "MI"]
    assert maps.one_label(table, "rhythm").tolist() == ["SR", "AFIB", "", "AFIB", ""]


# --- how far it can be trusted


def test_a_map_that_is_the_space_is_perfect_and_a_random_one_is_chance():
    x = np.random.default_rng(0).normal(size=(300, 2))
    z = (x - x.mean(0)) / x.std(0)
    same = z / np.linalg.norm(z, axis=1, keepdims=True)
    assert maps.trustworthiness(x, same, 10) == pytest.approx(1)
    assert maps.continuity(x, same, 10) == pytest.approx(1)
    assert maps.preservation(x, same, 10) == (1, 10 / 299)
    thrown = np.random.default_rng(1).normal(size=(300, 2))
    assert maps.trustworthiness(x, thrown, 10) == pytest.approx(0.5, abs=0.05)
    assert maps.preservation(x, thrown, 10)[0] == pytest.approx(10 / 299, abs=0.02)


def test_numbers_equal_references(fitted):
    x, _, fit = fitted
    similarity = cosine(x)
    np.fill_diagonal(similarity, -np.inf)
    far = np.linalg.norm(fit.embedding[:, None] - fit.embedding, axis=2)
    np.fill_diagonal(far, np.inf)
    space, plane = np.argsort(-similarity, axis=1), np.argsort(far, axis=1)

    def venna_kaski(some, others, k=7):
        """1 less the scaled ranks, in the order `others`, of what is near in `some` and not in `others`."""
        n = len(some)
        total = sum(max(0, list(others[i]).index(j) + 1 - k) for i in range(n) for j in some[i, :k])
        return 1 - 2 / (n * k * (2 * n - 3 * k - 1)) * total

    assert maps.trustworthiness(x, fit.embedding, 7) == pytest.approx(venna_kaski(plane, space))
    assert maps.continuity(x, fit.embedding, 7) == pytest.approx(venna_kaski(space, plane))
    shared = np.mean([len(set(space[i, :7]) & set(plane[i, :7])) / 7 for i in range(120)])
    assert maps.preservation(x, fit.embedding, 7)[0] == pytest.approx(shared)


def test_large_sets_are_sampled(fitted):
    x, _, fit = fitted
    pick = np.sort(np.random.default_rng(3).choice(120, 50, replace=False))
    z = (x - x.mean(0)) / x.std(0)
    expected = manifold.trustworthiness(z[pick], fit.embedding[pick], n_neighbors=5, metric="cosine")
    assert maps.trustworthiness(x, fit.embedding, 5, records=50, seed=3) == pytest.approx(expected, abs=1e-6)
    assert maps.trustworthiness(x, fit.embedding, 5, records=50, seed=4) != pytest.approx(expected, abs=1e-6)


def test_a_map_that_does_not_fit(fitted):
    x, _, fit = fitted
    for function in (maps.trustworthiness, maps.continuity, maps.preservation):
        with pytest.raises(CremaError, match=r"a map of shape \(119, 2\) does not fit 120 records"):
            function(x, fit.embedding[1:], 5)
        with pytest.raises(CremaError, match="points that are NaN"):
            function(x, fit.embedding * np.nan, 5)
    for function in (maps.trustworthiness, maps.continuity):
        with pytest.raises(CremaError, match="60 neighbours cannot be found"):
            function(x, fit.embedding, 60)


def test_stability_forgives_shift_turn_reflection_and_scale():
    rng = np.random.default_rng(0)
    first, other = rng.normal(size=(80, 2)), rng.normal(size=(80, 2))
    turn = np.array([[0, -1], [1, 0]]) @ np.diag([1, -1])
    table, aligned = maps.stability({"a": first, "b": 3 * first @ turn + 7, "c": other}, k=5)
    assert table[["a", "b"]].to_numpy().tolist() == [["a", "b"], ["a", "c"], ["b", "c"]]
    assert table["disparity"][0] == pytest.approx(0, abs=1e-12) and table["overlap"][0] == 1
    a, c = ((one - one.mean(0)) / np.linalg.norm(one - one.mean(0)) for one in (first, other))
    closed = 1 - np.linalg.svd(a.T @ c, compute_uv=False).sum() ** 2
    np.testing.assert_allclose(table["disparity"][1:], closed)
    np.testing.assert_allclose(aligned["a"], a, atol=1e-12)
    np.testing.assert_allclose(aligned["b"], a, atol=1e-12)
    assert np.sum((aligned["c"] - a) ** 2) == pytest.approx(closed)
    assert table["overlap"][1] < 0.3


def test_maps_that_cannot_be_compared():
    points = np.random.default_rng(0).normal(size=(20, 2))
    for given, sentence in (
        ({"a": points}, "at least two"),
        ({"a": points, "b": points[:9]}, r"shape \(9, 2\) does not fit 20 records"),
        ({"a": points, "b": 0 * points}, "all points of the map b are in one place"),
    ):
        with pytest.raises(CremaError, match=sentence):
            maps.stability(given, k=3)


# --- pictures


@pytest.fixture
def frame():
    rng = np.random.default_rng(0)
    n = 400
    group = rng.integers(0, 10, n)
    return pd.DataFrame(
        {
            "x": rng.normal(size=n),
            "y": 0.8 * rng.normal(size=n),
            "class": np.array(["NORM", "MI", "STTC", "CD", "HYP", *[""] * 5])[group],
            "device": np.array([f"AT-60 C {i}.5" for i in range(10)])[np.sort(group)],
            "age": np.where(group == 0, np.nan, 40.0 + group),
            "map": np.where(rng.random(n) < 0.5, "CR-MAE", "random"),
            "text": [f'<{i}> & "{g}"' for i, g in enumerate(group)],
        }
    )


@pytest.fixture(autouse=True)
def style():
    with matplotlib.rc_context():
        plots.use_style()
        yield


def panels(fig):
    return [ax for ax in fig.axes if ax.collections and ax.collections[0].get_gid() == "points"]


@pytest.mark.parametrize("columns", [["class"], ["class", "device", "age", "class"], ["class", "device", "age", "class", "device"]])
@pytest.mark.parametrize("facet", [None, "map"])
def test_panels_show_every_point_and_clip_nothing(frame, columns, facet):
    titles = dict.fromkeys(columns)
    titles = {name: f"Title of {name}" for name in titles}
    fig = plots.umap_panels(frame, titles, facet=facet)
    fig.draw_without_rendering()
    assert sum(len(ax.collections[0].get_offsets()) for ax in panels(fig)) == len(titles) * len(frame)
    tight = fig.get_tightbbox()
    assert min(tight.x0, tight.y0) >= -0.02 and tight.x1 <= plots.WIDTH + 0.02 and tight.y1 <= fig.get_figheight() + 0.02
    for ax in panels(fig):
        assert not len(ax.get_xticks()) and not len(ax.get_yticks())
        (x0, y0), (x1, _), (_, y1) = ax.transData.transform([(0, 0), (1, 0), (0, 1)])
        assert x1 - x0 == pytest.approx(y1 - y0, rel=0.02), "one scale in both directions"
        offsets = ax.collections[0].get_offsets()
        (left, right), (low, high) = ax.get_xlim(), ax.get_ylim()
        assert (offsets.min(0) > [left, low]).all() and (offsets.max(0) < [right, high]).all()
        assert ax.get_window_extent().width > 100
    boxes = [ax.get_tightbbox() for ax in panels(fig)]
    boxes += [ax.get_legend().get_window_extent() for ax in fig.axes if ax.get_legend()]
    for i, one in enumerate(boxes):
        for other in boxes[i + 1 :]:
            assert not (one.x0 < other.x1 - 1 and other.x0 < one.x1 - 1 and one.y0 < other.y1 - 1 and other.y0 < one.y1 - 1)
    assert fig._supxlabel.get_text() == NOTE


def test_colours_follow_the_alphabet_and_the_unknown_lie_below(frame):
    fig = plots.umap_panels(frame, ["class", "age"])
    classes, ages = panels(fig)
    most = sorted(set(frame["class"]) - {""})
    legend = next(ax.get_legend() for ax in fig.axes if ax.get_legend())
    assert [text.get_text() for text in legend.get_texts()] == [*most, "unknown"]
    points = classes.collections[0]
    colours = np.array([to_hex(c) for c in points.get_facecolors()])
    unknown = (frame["class"] == "").sum()
    assert (colours[:unknown] == UNKNOWN).all() and (colours[unknown:] != UNKNOWN).all()
    place = {tuple(xy): name for *xy, name in frame[["x", "y", "class"]].itertuples(index=False)}
    palette = dict(zip([c.lower() for c in plots.OKABE_ITO], most, strict=False))
    drawn = [place[tuple(xy)] for xy in points.get_offsets().data]
    assert [palette.get(colour, "") for colour in colours] == drawn
    known = [name for name in drawn if name]
    assert known != sorted(known, key=most.index), "in random order"
    grey = [to_hex(c) == UNKNOWN for c in ages.collections[0].get_facecolors()]
    assert sum(grey) == frame["age"].isna().sum()


def test_many_groups_become_other_and_maps_share_colours(frame):
    fig = plots.umap_panels(frame, ["device"], facet="map")
    (legend,) = [ax.get_legend() for ax in fig.axes if ax.get_legend()]
    names = [text.get_text() for text in legend.get_texts()]
    assert names == [*sorted(frame["device"].value_counts().index[:5]), "other"]
    assert [ax.get_title(loc="left") for ax in panels(fig)] == frame["map"].unique().tolist()
    repeated = pd.concat([frame, frame]).assign(map=np.repeat(["one", "two"], len(frame)))  # an index that is not unique
    one, two = (
        [to_hex(c) for c in ax.collections[0].get_facecolors()] for ax in panels(plots.umap_panels(repeated, ["class"], facet="map"))
    )
    assert one == two


@pytest.mark.parametrize(
    ("change", "options", "sentence"),
    [
        ({}, {"columns": ["sex"]}, "lacks the column sex"),
        ({}, {"columns": []}, "at least one column"),
        ({"class": ""}, {"columns": ["class"]}, "the column class knows no record's value"),
        ({"age": np.nan}, {"columns": ["age"]}, "the column age knows no record's value"),
        ({"x": np.nan}, {"columns": ["age"]}, "points that are NaN"),
        ({}, {"columns": ["age"], "facet": "device"}, "10 maps do not fit side by side"),
    ],
)
def test_frames_that_cannot_be_drawn(frame, change, options, sentence):
    with pytest.raises(CremaError, match=sentence):
        plots.umap_panels(frame.assign(**change), **options)


def test_the_page_holds_all_it_needs(frame):
    page = plots.scatter_html(frame, text="text", colour="class", title="A <map>")
    html = page._repr_html_()
    assert not re.search(r"https?:|src=|@import|url\(", html), "nothing is fetched"
    titles = re.findall(r"<path [^>]*><title>(.*?)</title>", html)
    assert sorted(titles) == sorted(f"&lt;{i}&gt; &amp; &quot;{t.split(chr(34))[1]}&quot;" for i, t in enumerate(frame["text"]))
    places = np.array([[int(v) for v in xy] for xy in re.findall(r'd="M(-?\d+) (-?\d+)h0"', html)])
    assert len(places) == len(frame) and (places >= 0).all() and (places <= [720, 540]).all()
    assert 'aria-label="A &lt;map&gt;: 400 recordings, coloured by class.' in html and 'role="img"' in html and 'tabindex="0"' in html
    assert "unknown" in html and "400 recordings" in repr(page) and "<" not in repr(page).replace("<map>", "")


def test_two_thousand_points_are_small_and_two_maps_live_on_one_page(frame):
    large = pd.concat([frame] * 6).iloc[:2200].assign(text="12345_hr, 56 years, F: NORM, SR, LVOLT")
    first, second = (plots.scatter_html(large, text="text", colour=colour).html for colour in ("class", "device"))
    assert max(len(first), len(second)) < 400_000
    names = [set(re.findall(r"#(map-\w+)", html)) for html in (first, second)]
    assert all(len(found) == 1 for found in names) and names[0] != names[1]
    with pytest.raises(CremaError, match="lacks the column name"):
        plots.scatter_html(frame, text="name", colour="class")
    with pytest.raises(CremaError, match="knows no record's value"):
        plots.scatter_html(frame.assign(nothing=""), text="text", colour="nothing")
