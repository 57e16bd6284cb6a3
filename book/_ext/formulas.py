"""Formulas, from LaTeX to MathML while the site is built: they are there with the text, without a
script, and a screen reader reads them. `book/_static/math.woff2` is the font that draws them.
"""

import html
import re

from docutils import nodes
from math_core import LatexError, LatexToMathML
from sphinx.transforms import SphinxTransform
from sphinx.util import logging
from sphinx.util.math import get_node_equation_number

LOGGER = logging.getLogger(__name__)
CONVERTER = LatexToMathML(fancy_error=False)

# In `10{,}000`, and in no other place, a comma without a space after it is between digits.
THOUSANDS = re.compile(r'(?<=\d)</mn><mo rspace="0">,</mo><mn>(?=\d{3}\b)')
# Environments that LaTeX numbers, and MathJax does not unless it is told to.
NUMBERED = re.compile(r"(?<=\{)(align|alignat|equation|flalign|gather|multline)(?=\})")
PUNCTUATION = re.compile(r"[.,;:!?)]+(?=\s|$)")

PRELOAD = """
<script>
  if (location.protocol.startsWith("http")) document.head.append(Object.assign(
    document.createElement("link"),
    {{rel: "preload", as: "font", type: "font/woff2", crossOrigin: "", href: "{font}"}}));
</script>
"""


def to_mathml(latex, block=False):
    """A `<math>` element. `latex` may have several equations, with an empty line between them.

    A `LatexError` says what is not LaTeX, or not known.
    """
    equations = [part.strip() for part in latex.split("\n\n") if part.strip()]
    if len(equations) > 1:
        source = r"\begin{aligned}" + r" \\ ".join(equations) + r"\end{aligned}"
    elif r"\\" in latex and r"\begin" not in latex:
        source = r"\begin{aligned}" + latex + r"\end{aligned}"
    else:
        source = NUMBERED.sub(r"\1*", latex)
    mathml = CONVERTER.convert_with_local_state(source, displaystyle=block)
    original = html.escape(" ".join(latex.split()))
    return THOUSANDS.sub(",", mathml).replace("<math", f'<math alttext="{original}"', 1)


def text_of(mathml):
    """What a formula says in a page's title, its description and the search: letters and signs."""
    spaced = re.sub(r'<mspace width="[12]em"/>', " ", mathml)
    text = html.unescape(re.sub(r"<[^>]*>", "", spaced))
    return text.translate({0xA0: " ", 0x2061: None, 0xFE00: None})


class Formulas(SphinxTransform):
    """Convert every formula once, when its page is read, so that an error names file and line."""

    default_priority = 870  # before what collects titles, at 880

    def apply(self):
        if self.app.builder.format != "html":
            return
        for node in [*self.document.findall(nodes.math), *self.document.findall(nodes.math_block)]:
            latex = node.astext()
            try:
                node["mathml"] = to_mathml(latex, isinstance(node, nodes.math_block))
            except LatexError as error:
                LOGGER.error("formula %r: %s", latex, error, location=node)
                node["mathml"] = f"<code>{html.escape(latex)}</code>"
            else:
                node[:] = [nodes.Text(text_of(node["mathml"]) + self.take_behind(node))]

    def take_behind(self, node):
        """Give an inline formula the punctuation behind it, which must not begin a line."""
        place = node.parent.index(node) + 1
        behind = node.parent[place] if place < len(node.parent) else None
        found = isinstance(behind, nodes.Text) and isinstance(node, nodes.math)
        if not found or not (found := PUNCTUATION.match(behind)):
            return ""
        node.parent[place] = nodes.Text(behind[found.end() :])
        node["behind"] = found[0]
        return found[0]


def visit_inline(writer, node):
    formula, behind = f'<span class="math notranslate">{node["mathml"]}</span>', node.get("behind")
    writer.body.append(f'<span class="with-end">{formula}{behind}</span>' if behind else formula)
    raise nodes.SkipNode


def visit_block(writer, node):
    writer.body.append(writer.starttag(node, "div", CLASS="math notranslate"))
    if node["number"]:
        writer.body.append(f'<span class="eqno">({get_node_equation_number(writer, node)})')
        writer.add_permalink_ref(node, "Link to this equation")
        writer.body.append("</span>")
    writer.body.append(f"{node['mathml']}</div>\n")
    raise nodes.SkipNode


def fetch_font_early(app, pagename, templatename, context, doctree):
    """Ask for the font of formulas before the style sheet that names it has come.

    By a script, since a browser that reads from disk would complain of the link.
    """
    if "<math" in context.get("body", ""):
        font = context["pathto"]("_static/math.woff2", resource=True)
        context["metatags"] = context.get("metatags", "") + PRELOAD.format(font=font)


def setup(app):
    app.add_transform(Formulas)
    app.connect("html-page-context", fetch_font_early)
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True, "env_version": 2}
