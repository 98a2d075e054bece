"""Words of a chapter that say what the committed records say, found without running the chapter.

A chapter closes with sentences that quote a committed record by `glue`. A page kept of a run quotes the record as it was when the chapter
ran; here the few statements that such a cell depends on are picked out of the chapter by the names that they read and bind, and run on
the records as they are now.
"""

import ast
import builtins
import symtable

from .errors import CremaError


def glued(sources):
    """What each code cell of a chapter glues.

    Args:
        sources: the chapter's code cells, texts in order.

    Returns:
        A list with an entry for each cell: dict from name to value; None where it glues nothing, or where that depends on a run.

    Raises:
        CremaError: the records lack what a cell quotes.
    """
    trees = [ast.parse(source).body for source in sources]
    return [_said(trees[: i + 1], source) if "glue(" in source else None for i, source in enumerate(sources)]


def _said(trees, source):
    statements = needed(trees)
    if any("setup" in _reads(statement)[2] for statement in statements):
        return None
    said = {}
    names = {"glue": lambda name, value, display=True: said.update({name: value})}
    try:
        exec(compile(ast.Module(statements, []), "<chapter>", "exec"), names)  # the book's own code, as its kernel would run it
    except Exception as error:
        first = source.strip().splitlines()[0]
        raise CremaError(f"the committed records do not give what is quoted by the cell '{first}': {error!r}") from error
    return said


def needed(trees):
    """The statements of the last of some cells and those before that they depend on, in order; `glue` is taken as known.

    Args:
        trees: a list of statements (`ast`) for each cell.
    """
    last = trees[-1]
    statements, kept, wanted = [one for tree in trees for one in tree], [], set()
    functions = {one.name: _reads(one)[0] for one in statements if isinstance(one, ast.FunctionDef)}
    for statement in statements[::-1]:
        reads, binds, _ = _reads(statement)
        while called := {name for function in reads & functions.keys() for name in functions[function]} - reads:
            reads |= called  # a function reads what it needs when it is called, not where it is defined
        if any(statement is one for one in last) or (binds | _changes(statement)) & wanted:
            kept.append(statement)
            wanted = (wanted - (binds if _always(statement) else set())) | reads
            wanted -= {"glue", *dir(builtins)}
    return kept[::-1]


def _reads(statement):
    """Names that a statement needs from before it, names that it binds, and attributes that it asks for."""
    tables = [symtable.symtable(ast.unparse(statement), "<chapter>", "exec")]
    for table in tables:
        tables += table.get_children()
    binds = {symbol.get_name() for symbol in tables[0].get_symbols() if symbol.is_assigned() or symbol.is_imported()}
    reads = {symbol.get_name() for table in tables for symbol in table.get_symbols() if symbol.is_referenced() and symbol.is_global()}
    reads -= set() if isinstance(statement, ast.Assign | ast.AnnAssign) else binds
    reads |= binds if isinstance(statement, ast.AugAssign) else set()
    return reads, binds, {node.attr for node in ast.walk(statement) if isinstance(node, ast.Attribute)}


def _changes(statement):
    """Names whose parts a statement sets, as in `table["task"] = ...`."""
    changed = set()
    for node in ast.walk(statement):
        if isinstance(node, ast.Subscript | ast.Attribute) and isinstance(node.ctx, ast.Store):
            while isinstance(node, ast.Subscript | ast.Attribute):
                node = node.value
            changed |= {node.id} if isinstance(node, ast.Name) else set()
    return changed


def _always(statement):
    """True where a statement binds its names whatever happens, so that what they were before does not matter."""
    return isinstance(statement, ast.Assign | ast.AnnAssign | ast.FunctionDef | ast.Import | ast.ImportFrom)
