"""Maps of embeddings: small multiples for print, and one map to point at for the screen."""

import zlib
from dataclasses import dataclass
from html import escape

import numpy as np
import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_rgba
from matplotlib.lines import Line2D

from ..errors import CremaError
from .style import GREY, OKABE_ITO, WIDTH, new_figure, require_columns

COLOURS = 6  # of Okabe and Ito's, without the faint yellow and the black
UNKNOWN, UNKNOWN_ON_SCREEN = "#d0d0d0", "#9a9a9a"  # the second can be seen on white and on black
NOTE = "The axes of a map have no unit."


def _checked(frame, columns):
    require_columns(frame, ("x", "y", *columns))
    if not len(frame) or not np.isfinite(frame[["x", "y"]].to_numpy(dtype=float)).all():
        raise CremaError("the map holds no point, or points that are NaN or infinite")


def _palette(values):
    """Groups and their colours: the most frequent ones in alphabetical order, so that two maps of the same groups agree.

    What is beyond `COLOURS` becomes "other"; unknown ('' or missing) has no colour here.
    """
    names = values.astype(object).where(values.notna(), "").astype(str)
    order = names[names != ""].value_counts().index.tolist()
    if not order:
        raise CremaError(f"the column {values.name} knows no record's value: leave it out")
    kept = sorted(order) if len(order) <= COLOURS else [*sorted(order[: COLOURS - 1]), "other"]
    return names.where(names.isin([*kept, ""]), "other"), dict(zip(kept, OKABE_ITO, strict=False))


def _scale(values):
    known = values[np.isfinite(values)]
    if not len(known):
        raise CremaError(f"the column {values.name} knows no record's value: leave it out")
    return ScalarMappable(Normalize(*np.quantile(known, [0.02, 0.98])), "viridis")


def _points(ax, frame, colours, known, shape, seed):
    """Points in random order, so that no group lies on top because it comes last; the unknown below them all.

    shape: height of the panel by its width; both directions keep one scale.
    """
    order = np.random.default_rng(seed).permutation(len(frame))
    order = order[np.argsort(known[order], kind="stable")]
    xy = frame[["x", "y"]].to_numpy(dtype=float)
    size = float(np.clip(4000 / len(frame), 1, 14))
    ax.scatter(*xy[order].T, c=colours[order], s=size, alpha=0.85, linewidths=0, rasterized=True, gid="points")
    width, height = np.ptp(xy, axis=0)
    middle, half = (xy.max(0) + xy.min(0)) / 2, 0.54 * max(width, height / shape, 1e-9) * np.array([1, shape])
    low, high = middle - half, middle + half
    ax.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), xticks=[], yticks=[], box_aspect=shape)
    ax.spines[:].set(visible=True, color=UNKNOWN)


def umap_panels(frame, columns, *, facet=None, seed=0):
    """One map in several colours, or several maps side by side in the same colours.

    A column of numbers gets a colour bar from its 2nd to its 98th percentile, any other a legend: its most frequent values, the rest as
    "other". What is unknown ('' or missing) is grey.

    Args:
        frame: columns x and y, and those to colour by.
        columns: dict column -> title, with the unit; or a list of columns. Without `facet` a panel each, with it a row each.
        facet: column that says which map a point belongs to, at most four; they stand side by side in the order of the frame.
        seed: of the order of drawing.

    Raises:
        CremaError: a column is missing or knows nothing, more than four maps, or points that are not finite.
    """
    titles = dict(columns) if isinstance(columns, dict) else {name: name for name in columns}
    _checked(frame, (*titles, *([facet] if facet else [])))
    frame = frame.reset_index(drop=True)
    maps = {"": frame} if facet is None else dict(tuple(frame.groupby(facet, sort=False)))
    if not 1 <= len(maps) <= 4:
        raise CremaError(f"{len(maps)} maps do not fit side by side: give at most four values of {facet}")
    if not titles:
        raise CremaError("name at least one column to colour the map by")
    wide = len(maps) if facet else 2 if len(titles) == 4 else min(3, len(titles))
    rows = len(titles) if facet else -(-len(titles) // wide)
    most = max((frame[name].nunique() for name in titles if not _is_number(frame[name])), default=0)
    foot = 0.55 if facet else 0.19 * max(2, -(-min(COLOURS + 2, most + 1) // 2)) + 0.1  # inches
    shape = float(np.clip(max(np.ptp(part["y"]) / max(np.ptp(part["x"]), 1e-9) for part in maps.values()), 0.6, 1))
    panel = min(WIDTH / wide, 4.5) * shape
    fig = new_figure(rows * (panel + 0.25 + foot) + 0.2)
    grid = fig.add_gridspec(2 * rows, wide, height_ratios=[panel, foot] * rows)
    for i, (name, title) in enumerate(titles.items()):
        row, column = (2 * i, 0) if facet else (2 * (i // wide), i % wide)
        axes = [fig.add_subplot(grid[row, column + k]) for k in range(len(maps))]
        colours, known, key = _key(frame[name])
        for ax, (which, part) in zip(axes, maps.items(), strict=True):
            mine = frame.index.isin(part.index) if facet else slice(None)
            _points(ax, part, colours[mine], known[mine], shape, seed)
            ax.set_title(str(which) if facet else title if wide > 1 else "", fontsize=9.5)
        below = fig.add_subplot(grid[row + 1, :] if facet else grid[row + 1, column])
        below.set_axis_off()
        _draw_key(below, key, title if facet or wide == 1 else None)
    fig.supxlabel(NOTE, fontsize=8, color=GREY, x=0.99, ha="right")
    return fig


def _is_number(values):
    return pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)


def _key(values):
    """Colours (records,), which are known, bool (records,), and what explains them: a colour scale, or a dict group -> colour."""
    if _is_number(values):
        values = values.astype(float)
        scale, known = _scale(values), np.isfinite(values.to_numpy())
        return np.where(known[:, None], scale.to_rgba(values.to_numpy()), to_rgba(UNKNOWN)), known, scale
    names, palette = _palette(values)
    known, full = (names != "").to_numpy(), palette | {"": UNKNOWN}
    return np.array([to_rgba(full[name]) for name in names]), known, palette if known.all() else palette | {"unknown": UNKNOWN}


def _draw_key(ax, key, title):
    """A colour bar or a legend in axes that show nothing else; with a title it stands in the middle, on one line."""
    if isinstance(key, dict):
        handles = [Line2D([], [], marker="o", ls="none", ms=5, color=colour, label=name) for name, colour in key.items()]
        place = {"loc": "upper center", "ncols": len(key)} if title else {"loc": "upper left", "ncols": 2}
        ax.legend(handles=handles, title=title, title_fontsize=8.5, fontsize=8, handletextpad=0.1, columnspacing=1, labelspacing=0.25,
                  borderaxespad=0, **place)  # fmt: skip
        return
    bar = ax.figure.colorbar(key, cax=ax.inset_axes([0.25, 0.75, 0.5, 0.2] if title else [0.05, 0.75, 0.9, 0.15]), orientation="horizontal")
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    if title:
        bar.set_label(title, fontsize=8.5)


@dataclass(frozen=True)
class Page:
    """A piece of HTML that a notebook shows; in print its sentence stands instead."""

    html: str
    sentence: str

    def _repr_html_(self):
        return self.html

    def __repr__(self):
        return self.sentence


STYLE = """<style>
#{id} {{margin: 0}}
#{id} svg {{width: 100%; height: auto; touch-action: pan-y}}
#{id} path {{fill: none; stroke-linecap: round; stroke-width: 7}}
#{id} output {{display: block; min-height: 1.5em}}
#{id} span {{margin-right: 1em; white-space: nowrap}}
#{id} i {{display: inline-block; width: .7em; height: .7em; border-radius: 50%}}
{colours}
#{id} path.on {{stroke-width: 16; stroke: currentColor}}
</style>"""
SCRIPT = """<script>
(() => {{
  const box = document.getElementById("{id}"), svg = box.querySelector("svg"), said = box.querySelector("output")
  const points = [...svg.querySelectorAll("path")], places = points.map(p => p.getAttribute("d").match(/-?\\d+/g).map(Number))
  let at = -1
  const show = i => {{
    points[at]?.classList.remove("on")
    at = (i + points.length) % points.length
    points[at].classList.add("on")
    said.textContent = points[at].textContent
  }}
  const seek = e => {{
    const here = new DOMPoint(e.clientX, e.clientY).matrixTransform(svg.getScreenCTM().inverse())
    const far = places.map(([x, y]) => Math.hypot(x - here.x, y - here.y)), near = Math.min(...far)
    if (near < 15) show(far.indexOf(near))
  }}
  svg.addEventListener("pointermove", seek)
  svg.addEventListener("pointerdown", seek)
  svg.addEventListener("keydown", e => {{
    const step = {{ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1}}[e.key]
    if (step) {{ e.preventDefault(); show(at + step) }}
  }})
}})()
</script>"""


def scatter_html(frame, *, text, colour, title="Map of the recordings", seed=0):
    """A map to point at: hover, touch or the arrow keys show a recording's text. One piece of HTML, no network, no library.

    It is an SVG with a title a point, so that it also speaks where scripts are off, in the colours of the page around it, light or
    dark. Two thousand points make some 200 kB.

    Args:
        frame: columns x, y, and those named by `text` and `colour`.
        text: column with what is said of a recording. colour: column of groups, see `umap_panels`.
        title: what a screen reader says of the picture. seed: of the order of drawing.

    Returns:
        An object with `_repr_html_`.

    Raises:
        CremaError: a column is missing or knows nothing, or points that are not finite.
    """
    _checked(frame, (text, colour))
    names, palette = _palette(frame[colour])
    kinds = {name: f"g{i}" for i, name in enumerate(["", *palette])}
    xy = frame[["x", "y"]].to_numpy(dtype=float)
    width, height = 720, 540
    scale = min((width - 20) / max(np.ptp(xy[:, 0]), 1e-9), (height - 20) / max(np.ptp(xy[:, 1]), 1e-9))
    xy = np.rint((xy - (xy.max(0) + xy.min(0)) / 2) * [scale, -scale] + [width / 2, height / 2]).astype(int)
    order = np.random.default_rng(seed).permutation(len(frame))
    order = order[np.argsort((names != "").to_numpy()[order], kind="stable")]
    kind, said = names.map(kinds).to_numpy(), frame[text].astype(str).map(escape).to_numpy()
    points = "".join(f'<path class="{kind[i]}" d="M{xy[i, 0]} {xy[i, 1]}h0"><title>{said[i]}</title></path>\n' for i in order)
    shown = palette if (names != "").all() else palette | {"": UNKNOWN}
    identity = f"map-{zlib.crc32(points.encode()):08x}"
    fills = (palette | {"": UNKNOWN_ON_SCREEN}).items()
    colours = "\n".join(f"#{identity} .{kinds[name]} {{stroke: {fill}; background: {fill}}}" for name, fill in fills)
    legend = "".join(f'<span><i class="{kinds[name]}"></i> {escape(name or "unknown")}</span>' for name in shown)
    note = f"{title}: {len(frame):,} recordings, coloured by {colour}. {NOTE}"
    html = (
        f'{STYLE.format(id=identity, colours=colours)}\n<figure id="{identity}">\n'
        f'<svg viewBox="0 0 {width} {height}" role="img" tabindex="0" aria-label="{escape(note)} Arrow keys go from point to point.">\n'
        f'{points}</svg>\n<output aria-live="polite">Point at a recording, or use the arrow keys.</output>\n'
        f"<div>{legend}</div>\n</figure>\n"
        f"{SCRIPT.format(id=identity)}"
    )
    return Page(html, f"{note} In the HTML edition every point says which recording it is.")
