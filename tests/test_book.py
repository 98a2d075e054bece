"""The rendered book in a headless browser, and what the runner does when a chapter or a page is wrong."""

import contextlib
import functools
import http.server
import os
import re
import shutil
import threading
from pathlib import Path
from urllib.parse import urlsplit

import nbformat
import pytest
import yaml
from conftest import ROOT, write_chapter
from test_notebooks import assert_figure

from crema_lib import bookbuild
from crema_lib.errors import CremaError

CHAPTERS = [path.with_suffix("").as_posix() for path in bookbuild.chapters()]
PAGES = re.findall(r"(?:file|root): (\S+)", (ROOT / "_toc.yml").read_text())
CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text())
PHONE = 375  # px
# What reaches beyond the window and lies in no box that scrolls: such text cannot be read.
WIDE = """elements => {
  const scrolls = e => e.tagName !== "ARTICLE" && (["auto", "scroll"].includes(getComputedStyle(e).overflowX) || scrolls(e.parentElement))
  const beyond = e => e.getBoundingClientRect().right > innerWidth + 1 && e.getClientRects().length
  return elements.filter(e => beyond(e) && !e.closest("mjx-assistive-mml") && !scrolls(e.parentElement)).map(e => e.outerHTML.slice(0, 120))
}"""
each_chapter = pytest.mark.parametrize("chapter", CHAPTERS)


@pytest.fixture(scope="module")
def site(quick_book):
    """Address of a server of the rendered pages."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=quick_book / "html"))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="module")
def browser():
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("no chromium on this machine")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        flags = ["--disable-gpu", "--disable-background-networking"] + ["--no-sandbox"] * (os.name == "posix" and os.getuid() == 0)
        browser = playwright.chromium.launch(executable_path=path, headless=True, args=flags)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def visit(browser, site):
    """Open a page; `page.troubles` collects console errors, failed requests and requests that leave the machine."""
    contexts = {}  # one for each width: its pages share what was fetched and compiled

    def local(url):
        return urlsplit(url).hostname in ("127.0.0.1", None)  # None: data: and blob:

    @contextlib.contextmanager
    def go(path, width=1200):
        if width not in contexts:
            contexts[width] = browser.new_context(viewport={"width": width, "height": 900})
        page = contexts[width].new_page()
        page.troubles = []
        page.on("console", lambda message: page.troubles.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: page.troubles.append(str(error)))
        page.on("requestfailed", lambda request: page.troubles.append(f"failed: {request.url}"))
        page.on("request", lambda request: None if local(request.url) else page.troubles.append(f"outside: {request.url}"))
        page.goto(f"{site}/{path}", wait_until="load")
        if page.locator(".math").count():
            page.wait_for_selector("mjx-container", timeout=20_000)
        yield page
        page.close()

    return go


@pytest.fixture(scope="module", params=PAGES)
def page(request, visit):
    """A page on a wide screen; opened once for all tests that look at it."""
    with visit(f"{request.param}.html") as opened:
        yield opened


@pytest.fixture(scope="module", params=PAGES)
def phone(request, visit):
    """A page on a phone."""
    with visit(f"{request.param}.html", width=PHONE) as opened:
        yield opened


def test_page_is_sound(page):
    assert page.troubles == []
    assert page.locator("article h1").count() == 1
    assert page.locator("mjx-merror").count() == 0
    alts = page.eval_on_selector_all("img", "all => all.map(img => [img.getAttribute('src'), (img.getAttribute('alt') || '').trim()])")
    assert [src for src, alt in alts if not alt] == []
    broken = page.eval_on_selector_all("article img", "all => all.filter(img => img.complete && !img.naturalWidth).map(img => img.src)")
    assert broken == []
    assert page.locator("input[type=search]:visible").count() + page.locator(".search-button-field:visible").count() <= 1


@pytest.mark.parametrize("page", CHAPTERS, indirect=True)
def test_colab_opens_the_source(page):
    repo, chapter = CONFIG["repository"]["url"].removeprefix("https://github.com/"), urlsplit(page.url).path[1 : -len(".html")]
    wanted = f"https://colab.research.google.com/github/{repo}/blob/{CONFIG['repository']['branch']}/{chapter}.ipynb"
    links = page.eval_on_selector_all("a[href*='colab']", "all => all.map(a => a.href)")
    assert wanted in links
    assert (ROOT / f"{chapter}.ipynb").is_file()


def test_page_fits_a_phone(phone):
    assert phone.evaluate("document.documentElement.scrollWidth") <= PHONE + 1
    assert phone.eval_on_selector_all("article *", WIDE) == []


def test_figures_keep_their_shape_on_a_phone(phone):
    ratio = "all => all.filter(i => i.naturalWidth).map(i => (i.width / i.height) / (i.naturalWidth / i.naturalHeight))"
    assert all(0.97 < value < 1.03 for value in phone.eval_on_selector_all("article img", ratio))


@pytest.mark.parametrize("word", ["papermill", "electrocardiogram"])
def test_search_finds_a_word(visit, word):
    with visit(f"search.html?q={word}") as opened:
        opened.wait_for_selector("#search-results ul.search li a", timeout=20_000)
        assert opened.troubles == []


def test_search_does_not_find_what_is_not_there(visit):
    with visit("search.html?q=xylophonequartet") as opened:
        opened.wait_for_selector("#search-results p", timeout=20_000)
        opened.wait_for_timeout(500)
        assert opened.locator("#search-results ul.search li a").count() == 0


@each_chapter
def test_outputs_are_fit_to_print(quick_book, chapter):
    nb = nbformat.read(quick_book / "executed" / "quick" / f"{chapter}.ipynb", as_version=4)
    assert "widgets" not in nb.metadata
    for cell in (cell for cell in nb.cells if cell.cell_type == "code"):
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr", f"a warning on the page: {output.text[:300]}"
            data = output.get("data", {})
            assert "application/vnd.jupyter.widget-view+json" not in data
            if "image/png" in data or "image/svg+xml" in data:
                assert_figure(cell)


def test_a_failing_chapter_stops_the_run_with_its_name_and_last_line(project, capsys):
    (project / "_toc.yml").write_text("format: jb-book\nroot: book/intro\nchapters:\n  - file: book/01_good\n  - file: book/02_bad\n")
    write_chapter(project / "book" / "01_good.ipynb", "print(6 * 7)")
    write_chapter(project / "book" / "02_bad.ipynb", "def f():\n    raise KeyError('no such lead')\n\nf()", "print('never')")
    with pytest.raises(CremaError, match=r"chapter 02_bad failed in cell 4: KeyError: 'no such lead'") as error:
        bookbuild.build("quick", jobs=1)
    assert "01_good" in capsys.readouterr().out
    kept = project / "_build" / "executed" / "quick" / "book" / "02_bad.ipynb"
    assert str(kept) in str(error.value)
    outputs = [cell.outputs for cell in nbformat.read(kept, as_version=4).cells if cell.cell_type == "code"]
    assert outputs[-2][0].ename == "KeyError"
    assert outputs[-1] == []
    assert not (project / "_build" / "html").exists()

    pages = bookbuild.render(project / "_build" / "executed" / "quick", project / "_build")
    assert "42" in (pages.parent / "book" / "01_good.html").read_text()
    assert "without results" in (said := capsys.readouterr().out)
    assert said.rstrip().endswith("02_bad")
    write_chapter(project / "book" / "01_good.ipynb", "print(6 * 8)")
    bookbuild.render(project / "_build" / "executed" / "quick", project / "_build")
    assert "01_good, 02_bad" in capsys.readouterr().out, "a run of what has changed since is no run"


def test_chapters_run_side_by_side_and_after_those_that_they_need(project, capsys):
    names = ["01_one", "02_two", "03_three"]
    (project / "_toc.yml").write_text("format: jb-book\nroot: book/intro\nchapters:\n" + "".join(f"  - file: book/{n}\n" for n in names))
    meet = """
import time
from pathlib import Path

Path("{own}").touch()
waited = 0.0
while not Path("{other}").exists():
    assert waited < 150
    time.sleep(0.1)
    waited += 0.1
"""
    write_chapter(project / "book" / "01_one.ipynb", meet.format(own="one", other="two"), "Path('done').touch()")
    write_chapter(project / "book" / "02_two.ipynb", meet.format(own="two", other="one"))
    write_chapter(project / "book" / "03_three.ipynb", "from pathlib import Path\n\nassert Path('done').exists()")
    third = project / "book" / "03_three.ipynb"
    third.write_text(third.read_text().replace("# 03_three", "# 03_three **You need** [](01_one.ipynb). **Time**: none"))
    assert bookbuild.needs(Path("book/03_three.ipynb")) == {"01_one.ipynb"} and not bookbuild.needs(Path("book/01_one.ipynb"))
    bookbuild.build("quick", render_pages=False, jobs=2)
    said = capsys.readouterr().out
    assert said.index("01_one") < said.index("03_three") < said.index("all chapters") and "02_two" in said
    write_chapter(project / "book" / "02_two.ipynb", "import os\n\nos.kill(os.getpid(), 9)")
    with pytest.raises(CremaError, match="chapter 02_two failed: Kernel died"):
        bookbuild.build("quick", only=["02"], render_pages=False, jobs=2)


def test_a_warning_stops_the_rendering(project):
    (project / "book" / "intro.md").write_text("# A book\n\nSee [the other page](nowhere.md) and {ref}`nothing`.\n")
    with pytest.raises(CremaError, match="not rendered without warnings") as error:
        bookbuild.render(project / "none", project / "_build")
    assert "nowhere" in str(error.value)
    assert "nothing" in str(error.value), "keep going: all of them at once"
    assert (project / "_build" / "render.log").is_file()


def test_an_override_that_no_chapter_has(project):
    (project / "_toc.yml").write_text("format: jb-book\nroot: book/intro\nchapters:\n  - file: book/01_good\n")
    write_chapter(project / "book" / "01_good.ipynb", "print(6 * 7)")
    with pytest.raises(CremaError, match="no chapter that is to be run has a parameter lr: they have profile, seed"):
        bookbuild.build("quick", overrides=["lr=1e-4"])
    with pytest.raises(CremaError, match="no chapter 07: known are 01_good"):
        bookbuild.select(["07"])


def test_a_book_without_chapters(project):
    with pytest.raises(CremaError, match="names no notebook that is there"):
        bookbuild.build("quick")
