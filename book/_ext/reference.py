"""The API reference: an entry for each public name, from its docstring, and the chapters that build
and use it.

In a page of `book/appendix/api*.md`, ``<!-- reference: densenet_tutorial.weights -->`` becomes the
entries of that module's public names, or of those that follow the module's name, and
``<!-- reference: table -->`` a table of all of them. What a chapter builds is what it links to;
what it uses is read from its code.
"""

import ast
import functools
import importlib
import inspect
import re
import sys
import typing
from dataclasses import dataclass
from pathlib import Path

import nbformat
from sphinx import addnodes
from sphinx.errors import ExtensionError
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.nodes import make_refnode

sys.path.append(str(Path(__file__).resolve().parents[1] / "_tools"))
import contents

import densenet_tutorial
from densenet_tutorial.check.engine import Question

PACKAGE = densenet_tutorial.__name__
MARK = re.compile(r"<!-- *reference: *([\w.]+)((?: +\w+)*) *-->")
LINK = re.compile(rf"\(appendix/api\w*\.md#({PACKAGE}[\w.]*)\)")
SIGNATURE = re.compile(r'(?<=<dt class="sig sig-object py").*?(?=</dt>)', re.DOTALL)
#: Type variables, and types with arguments.
TYPES = (typing.TypeVar, type(list[int]))
#: A value that is longer is left out.
LONGEST_VALUE = 80


@dataclass(frozen=True)
class Entry:
    """A public name: where it is imported from, what it is, and where it is defined."""

    path: str
    thing: object
    directive: str
    home: str
    line: int
    comment: str

    @property
    def name(self):
        return self.path.rpartition(".")[2]

    @property
    def first_sentence(self):
        """As Markdown."""
        text = self.comment or inspect.getdoc(self.thing) or ""
        text = " ".join(text.partition("\n\n")[0].split())
        text = re.split(r"(?<=[a-z)`\]]\.) ", text)[0]
        text = re.sub(r":\w+:`~?([^`]*)`|``([^`]*)``", r"`\1\2`", text)
        return text.replace("|", "\\|")


# ------------------------------------------------------------------------------ what is public


@functools.cache
def defined(module):
    """The names that a module defines at its top: line and comment of each."""
    analyzer = ModuleAnalyzer.for_module(module)
    found = {}
    for node in ast.parse(analyzer.code).body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            found[node.name] = node.lineno, ""
        for target in [*getattr(node, "targets", []), getattr(node, "target", None)]:
            if isinstance(node, (ast.Assign, ast.AnnAssign)) and isinstance(target, ast.Name):
                lines = analyzer.find_attr_docs().get(("", target.id), [])
                found[target.id] = node.lineno, "\n".join(lines).strip()
    return found


@functools.cache
def homes():
    """For each constant of the package, the modules that define one of this name."""
    root = Path(densenet_tutorial.__file__).parent
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root.parent).with_suffix("").parts
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        for name in defined(module) if parts[-1] != "__main__" else ():
            found.setdefault(name, []).append(module)
    return found


def public_names(module):
    """``__all__``; or, where there is none, what the module defines for others: types of its own
    arguments are not.
    """
    there = importlib.import_module(module)
    return getattr(there, "__all__", None) or [
        name
        for name in defined(module)
        if not name.startswith("_") and not isinstance(getattr(there, name), TYPES)
    ]


def entry(module, name):
    """What the reference says about one name."""
    thing = getattr(importlib.import_module(module), name)
    if inspect.isclass(thing) or inspect.isroutine(thing):
        home = thing.__module__
        directive = "autofunction" if inspect.isroutine(thing) else "autoclass"
        if inspect.isclass(thing) and issubclass(thing, BaseException):
            directive = "autoexception"
    elif isinstance(thing, Question):
        tests = [f"- {tried.text}" for tried in thing.properties]
        comment = "\n".join([f"Check {' and '.join(thing.targets)}. What is tested:", "", *tests])
        return Entry(f"{module}.{name}", thing, "py:function", module, 0, comment)
    else:
        directive = "py:data"
        (home,) = {h for h in homes()[name] if getattr(importlib.import_module(h), name) is thing}
    line, comment = defined(home)[name]
    if directive == "py:data" and not comment:
        raise ExtensionError(f"{home}.{name} has no comment, `#: …`, that says what it is")
    if directive != "py:data" and not thing.__doc__:
        raise ExtensionError(f"{home}.{name} has no docstring")
    return Entry(f"{module}.{name}", thing, directive, home, line, comment)


def pages(root):
    """The pages of the reference, in order, and their marks."""
    return {
        page: MARK.findall(Path(root, f"{page}.md").read_text(encoding="utf-8"))
        for page in contents.pages(root)
        if page.startswith("book/appendix/api")
    }


def reference(root):
    """The entries of each module, by page, each thing once: under the first of its names."""
    found, known = {}, set()
    for page, marks in pages(root).items():
        found[page] = {}
        for module, chosen in marks:
            if module == "table":
                continue
            names = chosen.split() or public_names(module)
            entries = [entry(module, name) for name in names]
            new = [e for e in entries if (e.home, e.name) not in known]
            known |= {(e.home, e.name) for e in new}
            order = [f"{PACKAGE}.{home}" for home in densenet_tutorial._HOMES]
            new.sort(key=lambda e: (order.index(e.home) if e.home in order else 0, e.home, e.line))
            found[page][module] = new
    return found


def all_entries(root):
    return [e for modules in reference(root).values() for each in modules.values() for e in each]


# ------------------------------------------------------------------------------ what chapters do


def chapters(root):
    """The chapters of `_toc.yml`, by number."""
    found = ((re.match(r"book/(\d\d)_", file), file) for file in contents.pages(root))
    return {int(number[1]): file for number, file in found if number}


def known_by(tree):
    """What the names in some code stand for, as far as they come from the package."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE):
            module = importlib.import_module(node.module)
            for alias in node.names:
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")
                found[alias.asname or alias.name] = getattr(module, alias.name)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name == PACKAGE:
                    found[alias.asname or alias.name] = densenet_tutorial
    return found


def used_in(code):
    """The things of the package that some code names."""
    tree = ast.parse(code)
    names = known_by(tree)

    def value(node):
        if isinstance(node, ast.Name):
            return names.get(node.id)
        if isinstance(node, ast.Attribute):
            return getattr(value(node.value), node.attr, None)
        return None

    return [v for node in ast.walk(tree) if (v := value(node)) is not None] + list(names.values())


def roles(root):
    """For each entry's path, the chapters that build it and those that use it."""
    entries = all_entries(root)
    found = {e.path: ([], []) for e in entries}
    for number, file in chapters(root).items():
        cells = nbformat.read(Path(root, f"{file}.ipynb"), as_version=4).cells
        text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
        for link in LINK.findall(text):
            path = link if link in found else link.rpartition(".")[0]  # of a method, its class
            if path not in found:
                raise ExtensionError(f"{file}: the reference has no entry {link}")
            if number not in found[path][0]:
                found[path][0].append(number)
        code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
        code = re.sub(r"^(\s*)[%!].*", r"\1pass", code, flags=re.MULTILINE)
        used = {id(thing) for thing in used_in(code)}
        for e in entries:
            # Two constants may be the same object, such as a number; functions are not.
            if (
                id(e.thing) in used
                and not isinstance(e.thing, (str, int, float))
                and number not in found[e.path][0]
            ):
                found[e.path][1].append(number)
    return found


# ------------------------------------------------------------------------------ what the page says


def directive(e, chapters_of):
    """The entry in reStructuredText."""
    if e.directive.startswith("py:"):
        if isinstance(e.thing, Question):
            lines = [f".. py:function:: {e.path}({', '.join(e.thing.targets)}, *, seed=None)"]
        else:
            value = repr(e.thing)
            lines = [f".. py:data:: {e.path}"]
            lines += [f"   :value: {value}"] if len(value) <= LONGEST_VALUE else []
        lines += ["", *(f"   {line}" for line in e.comment.splitlines())]
        lines += ["", *(f"   {line}" for line in chapters_of)]
    else:
        lines = [f".. {e.directive}:: {e.path}"]
        lines += ["   :members:", "   :member-order: bysource"] if inspect.isclass(e.thing) else []
    return [*lines, ""]


def chapter_lines(root, path):
    """A sentence with links to the chapters, in reStructuredText."""
    files = chapters(root)
    built, used = roles_of(root)[path]
    parts = [
        f"{verb} chapter{'s' if len(numbers) > 1 else ''} "
        + ", ".join(f":doc:`{n} </{files[n]}>`" for n in numbers)
        for verb, numbers in (("Built in", built), ("Used in", used))
        if numbers
    ]
    return [".. container:: chapters", "", f"   {'. '.join(parts)}."] if parts else []


@functools.cache
def roles_of(root):
    return roles(root)


@functools.cache
def reference_of(root):
    return reference(root)


def table(root):
    """Every name, what it is, and its chapters: in Markdown, a table for each module."""
    files = chapters(root)

    def links(numbers):
        return ", ".join(f"[{n}](/{files[n]}.ipynb)" for n in numbers)

    lines = []
    for page, modules in reference_of(root).items():
        for module, entries in modules.items():
            if not entries:
                continue
            lines += ["", f"### `{module}`", "", "| name | what it is | built in | used in |"]
            lines += ["|---|---|---|---|"]
            for e in entries:
                built, used = roles_of(root)[e.path]
                link = f"[`{e.name}`]({page.rpartition('/')[2]}.md#{e.path})"
                cells = link, e.first_sentence, links(built), links(used)
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def fill_in(app, docname, source):
    """Put the entries and the table where a page has a mark for them."""
    root = app.srcdir
    modules = reference_of(root).get(docname)
    if modules is None:
        return

    def text(match):
        if match[1] == "table":
            return table(root)
        lines = [
            line for e in modules[match[1]] for line in directive(e, chapter_lines(root, e.path))
        ]
        return "\n".join(["```{eval-rst}", *lines, "```"])

    source[0] = MARK.sub(text, source[0])


def guard_colons(app, what, name, obj, options, lines):
    """Keep napoleon from taking words before a colon for a type: our types stand in the code."""
    if what in ("attribute", "data", "property") and lines:
        lines[0] = f": {lines[0]}"
    for index, line in enumerate(lines[:-1]):
        if line.strip() == "Returns:":
            lines[index + 1] = re.sub(r"^( *)", r"\1: ", lines[index + 1])


def readable(app, what, name, obj, options, signature, returns):
    """Defaults that are made afresh have no name in Python, and Sphinx could not read the rest."""
    return (signature or "").replace("<factory>", "...") or None, returns


def add_chapters(app, what, name, obj, options, lines):
    """End a docstring with the chapters that build and use the thing."""
    if name in roles_of(app.srcdir):
        lines += ["", *chapter_lines(app.srcdir, name), ""]


def name_anchors(app, doctree):
    """Let links in Markdown, `api.md#densenet_tutorial.DenseLayer`, lead to entries."""
    slugs = app.env.metadata[app.env.docname].get("myst_slugs")
    if slugs is not None and app.env.docname in reference_of(app.srcdir):
        for signature in doctree.findall(addnodes.desc_signature):
            for name in signature["ids"]:
                slugs[name] = (signature.line, name, name)


# ------------------------------------------------------------------------------ references


def find(name):
    """The thing with a dotted name, or None."""
    first, *rest = name.split(".")
    try:
        thing = importlib.import_module(first)
    except ImportError:
        return None
    for index, part in enumerate(rest, start=1):
        if not hasattr(thing, part):
            try:
                importlib.import_module(f"{first}.{'.'.join(rest[:index])}")
            except ImportError:
                return None
        thing = getattr(thing, part, None)
    return thing


def scopes(root, node):
    """Where the name in a reference may be from: the module that defines the entry around it, the
    one that the entry is imported from, and those around them.
    """
    around = [node.get("py:module") or PACKAGE]
    place = node
    while place is not None:
        if isinstance(place, addnodes.desc) and place.children:
            module = place[0].get("module") or PACKAGE
            thing = find(f"{module}.{place[0].get('fullname')}")
            around.insert(0, getattr(thing, "__module__", None) or module)
        place = place.parent
    for module in list(around):
        while module.startswith(f"{PACKAGE}."):
            module = module.rpartition(".")[0]
            around.append(module)
    return [*dict.fromkeys(around), "torch.nn", ""]


def resolve(app, env, node, contnode):
    """Resolve names as the module that uses them does. What is not part of the reference, such as
    what belongs to torch, stays text; what does not exist stays a warning.
    """
    if node.get("refdomain") != "py":
        return None
    target = node["reftarget"]
    objects = env.get_domain("py").objects
    for scope in scopes(app.srcdir, node):
        thing = find(f"{scope}.{target}".strip("."))
        if thing is None:
            continue
        for e in all_entries_of(app.srcdir):
            name, _, rest = getattr(thing, "__qualname__", "").partition(".")
            same = thing is e.thing and e.name == target.rpartition(".")[2]
            if same or (name == e.name and getattr(thing, "__module__", None) == e.home):
                path = f"{e.path}.{rest}".strip(".")
                if path in objects:
                    at = objects[path]
                    return make_refnode(
                        app.builder, node["refdoc"], at.docname, at.node_id, contnode, path
                    )
        return contnode
    return None


@functools.cache
def all_entries_of(root):
    return all_entries(root)


def forget(app):
    """The files may have changed since the last build in this process."""
    for cached in (defined, homes, roles_of, reference_of, all_entries_of):
        cached.cache_clear()


def read_again(app, env, added, changed, removed):
    """These pages show what stands in other files: read them in every build."""
    return [page for page in reference_of(app.srcdir) if page in env.found_docs]


def add_style(app, pagename, templatename, context, doctree):
    if pagename in reference_of(app.srcdir):
        app.add_css_file("reference.css")


def repair_signatures(app, exception):
    """Make the lists of arguments lines: Sphinx writes lists of definitions that define nothing."""
    if exception or app.builder.format != "html":
        return
    for page in reference_of(app.srcdir):
        path = Path(app.outdir, f"{page}.html")
        text = path.read_text(encoding="utf-8")
        path.write_text(SIGNATURE.sub(lines_of, text), encoding="utf-8")


def lines_of(match):
    text = re.sub(r"</d[ld]>", "</span>", match[0])
    return text.replace("<dl>", '<span class="lines">').replace("<dd>", '<span class="line">')


def setup(app):
    app.setup_extension("sphinx.ext.autodoc")
    app.setup_extension("sphinx.ext.napoleon")
    app.connect("builder-inited", forget)
    app.connect("env-get-outdated", read_again)
    app.connect("source-read", fill_in)
    app.connect("autodoc-process-docstring", guard_colons, priority=400)  # before napoleon
    app.connect("autodoc-process-docstring", add_chapters, priority=900)  # after napoleon
    app.connect("autodoc-process-signature", readable)
    app.connect("doctree-read", name_anchors)
    app.connect("missing-reference", resolve)
    app.connect("html-page-context", add_style)
    app.connect("build-finished", repair_signatures)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
