"""What a chapter quotes of committed records: found without a run, as the records are now."""

import ast
import json

import pytest
from conftest import ROOT

from crema_lib import bookbuild, site, words
from crema_lib.errors import CremaError

SETUP = 'from crema_lib import notebook, runs\n\np = notebook.setup("01_x")\nstore = notebook.open_data(p)'
each_chapter = pytest.mark.parametrize("path", bookbuild.chapters(), ids=lambda path: path.stem)


def parsed(*sources):
    return [ast.parse(source).body for source in sources]


def text(statements):
    return [ast.unparse(statement) for statement in statements]


def test_only_what_a_cell_depends_on():
    cells = parsed(
        SETUP,
        "a, b = 1, 2\nrow = store.rows(3)",
        "def half(x):\n    return x / c\n\nc = 4",
        "table = {'a': a}\ntable['b'] = half(a)\nother = 5",
        "c = 2\nc += 1",
        "for row in table:\n    glue(row, [table[row] for key in table][0])",
    )
    assert text(words.needed(cells)) == [
        "a, b = (1, 2)",
        "def half(x):\n    return x / c",
        "c = 4",
        "table = {'a': a}",
        "table['b'] = half(a)",
        "for row in table:\n    glue(row, [table[row] for key in table][0])",
    ]


def test_a_name_under_a_condition_may_be_the_earlier_one():
    cells = parsed("x = 1", "x = x + 1\nif x > 5:\n    x = 0", "glue('x', x)")
    assert text(words.needed(cells)) == ["x = 1", "x = x + 1", "if x > 5:\n    x = 0", "glue('x', x)"]


def test_values_of_cells_that_need_no_run(tmp_path):
    record = tmp_path / "record.json"
    record.write_text(json.dumps({"value": 0.51234}))
    read = f"import json\nfrom myst_nb import glue\n\nreal = json.load(open({str(record)!r}))"
    sources = [SETUP, read, "glue('real', f\"{real['value']:.2f}\", display=False)", "glue('own', store.rows(9))", "print(real)"]
    assert words.glued(sources) == [None, None, {"real": "0.51"}, None, None]
    record.write_text(json.dumps({"value": 0.9}))
    assert words.glued(sources)[2] == {"real": "0.90"}, "as the record is now"
    record.write_text("{}")
    with pytest.raises(
        CremaError, match=r"the committed records do not give what is quoted by the cell 'glue\('real'.*KeyError\('value'\)"
    ):
        words.glued(sources)


@each_chapter
def test_every_word_of_a_page_is_there_and_is_that_of_the_record(path):
    source = bookbuild.read(ROOT / path)
    code = [cell.source for cell in source.cells if cell.cell_type == "code"]
    wanted = {name for cell in source.cells if cell.cell_type == "markdown" for name in site._GLUE.findall(cell.source)}
    shown = {
        output.metadata["scrapbook"]["name"]: output.data["application/papermill.record/text/plain"]
        for cell in site.page(path, "ptbxl")[0].cells if cell.cell_type == "code" for output in cell.outputs if site._is_glue(output)
    }  # fmt: skip
    assert wanted <= set(shown), "a sentence of the public page lacks its figure"
    for said in filter(None, words.glued(code)):
        assert {name: repr(value) for name, value in said.items()}.items() <= shown.items()
