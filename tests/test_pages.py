"""The pages beside the chapters: glossary, numbers of the chapters, part openings, and the drawings of the page on the ECG."""

import re
import runpy
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

from crema_lib import bookbuild
from crema_lib.data.leads import LEADS, to_canonical
from crema_lib.errors import CremaError

BOOK = ROOT / "book"
PAGES = sorted(BOOK.glob("*.md"))
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
each_figure = pytest.mark.parametrize("name", ["leads", "waves", "rhythms", "findings", "artefacts"])
PARTS = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))["parts"]


def glossary():
    """Terms of the glossary, in the order of the file."""
    block = re.search(r"```\{glossary\}\n:sorted:\n(.*?)```", (BOOK / "notation.md").read_text(encoding="utf-8"), re.S)[1]
    return [line for line in block.splitlines() if re.match(r"\S", line)]


def test_the_glossary_names_each_term_once_and_explains_it():
    terms = glossary()
    assert len(terms) > 100
    assert len({term.lower() for term in terms}) == len(terms)
    block = (BOOK / "notation.md").read_text(encoding="utf-8").partition(":sorted:\n")[2]
    assert [entry for entry in re.split(r"\n\n(?=\S)", block.strip("\n` ")) if not re.search(r"^  \S", entry, re.M)] == []


@each_page
def test_every_term_that_a_page_links_to_is_in_the_glossary(page):
    used = re.findall(r"\{term\}`(?:[^`<]*<)?([^`>]+)>?`", page.read_text(encoding="utf-8"))
    assert {term.lower() for term in used} <= {term.lower() for term in glossary()}


def test_a_chapter_has_the_number_of_its_file():
    listed = [Path(entry["file"]) for part in PARTS for entry in part["chapters"] if part.get("numbered")]
    assert listed == [path.with_suffix("") for path in bookbuild.chapters()], "pages have no number"
    assert [int(path.name[:2]) for path in listed] == list(range(1, len(listed) + 1))


def test_a_page_opens_each_part_and_names_its_chapters():
    opened = []
    for i, part in enumerate(PARTS):
        if part.get("numbered"):
            before = PARTS[i - 1]
            page = ROOT / f"{before['chapters'][0]['file']}.md"
            text = page.read_text(encoding="utf-8")
            opened.append(page)
            assert text.startswith(f"# {before['caption']}\n"), "the page has the name of its part"
            assert re.findall(r"\[\]\((\d\w+)\.ipynb\)", text) == [Path(entry["file"]).name for entry in part["chapters"]]
    assert sorted(opened) == sorted(BOOK.glob("part_*.md"))


@pytest.fixture(scope="module")
def drawings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("figures")
    drawn = runpy.run_path(str(BOOK / "figures" / "draw.py"))
    drawn["draw"](["leads", "waves", "findings"], folder)
    return drawn, folder


@each_figure
def test_the_drawings_are_there_and_have_a_text_in_their_place(name):
    page = (BOOK / "ecg.md").read_text(encoding="utf-8")
    assert (BOOK / "figures" / f"ecg-{name}.svg").is_file()
    assert re.search(rf"```\{{figure\}} figures/ecg-{name}\.svg\n:alt: .{{50,}}", page)


def test_the_drawings_can_be_made_again(drawings):
    drawn, folder = drawings
    assert {f"ecg-{name}.svg" for name in drawn["FIGURES"]} == {path.name for path in (BOOK / "figures").glob("*.svg")}
    for path in sorted(folder.iterdir()):
        size = r'<svg [^>]*width="[\d.]+pt"[^>]*viewBox="[\d. ]+"'
        assert re.search(size, path.read_text(encoding="utf-8"), re.S)


def test_a_beat_obeys_the_equations_of_the_page(drawings):
    beat = drawings[0]["beat"]()
    derived, _ = to_canonical([beat["I"], beat["II"]], ["I", "II"])
    assert all(abs(derived[i] - beat[lead]).max() < 1e-6 for i, lead in enumerate(LEADS[:6]))
    assert abs(beat["I"] + beat["III"] - beat["II"]).max() < 1e-9


def test_an_unknown_drawing(drawings):
    with pytest.raises(CremaError, match="no figure heart: known are leads, waves, rhythms, findings, artefacts"):
        drawings[0]["draw"](["leads", "heart"])
