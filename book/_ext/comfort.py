"""What makes pages comfortable: `comfort.css`, the book's title in a phone's header, and tables
that say in a sentence what was not measured.
"""

import html
import re
from pathlib import Path

from docutils import nodes
from sphinx.transforms import SphinxTransform

NOT_MEASURED = "not measured yet"
# The address of the first page, which differs from page to page, and the button before the title.
HOME = re.compile(r'<a class="navbar-brand logo" href="([^"]*)"')
BUTTON = re.compile(
    r'(<button class="sidebar-toggle primary-toggle(?:(?!</button>).)*</button>)(?!<a)', re.DOTALL
)


class Unmeasured(SphinxTransform):
    """Take out of a table the columns in which nothing was measured, and say so below it."""

    default_priority = 870

    def apply(self):
        for table in [*self.document.findall(nodes.table)]:
            group, body = table.next_node(nodes.tgroup), table.next_node(nodes.tbody)
            head = table.next_node(nodes.thead)
            if head is None or body is None:
                continue
            columns = zip(*(row.children for row in body.children), strict=False)
            empty = [
                index
                for index, column in enumerate(columns)
                if all(cell.astext() == NOT_MEASURED for cell in column)
            ]
            if not empty:
                continue
            names = [head.children[0].children[index].astext() for index in empty]
            for row in [*head.children, *body.children]:
                row.children = [c for i, c in enumerate(row.children) if i not in empty]
            widths = [*group.findall(nodes.colspec)]
            for index in empty:
                group.remove(widths[index])
            group["cols"] -= len(empty)
            text = f"Not measured yet, and so not in the table: {'; '.join(names)}."
            table.parent.insert(table.parent.index(table) + 1, nodes.paragraph(text, text))


def name_pages(app, exception):
    """Put the book's title, a link to its first page, beside the button that opens the menu."""
    if exception or app.builder.format != "html":
        return
    title = html.escape(app.config.html_title)
    for page in Path(app.outdir).rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        if home := HOME.search(text):
            link = f'<a class="header-title" href="{home[1]}">{title}</a>'
            if (changed := BUTTON.sub(rf"\1{link}", text, count=1)) != text:
                page.write_text(changed, encoding="utf-8")


def setup(app):
    app.add_css_file("comfort.css", priority=900)  # after book.css
    app.add_transform(Unmeasured)
    app.connect("build-finished", name_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True, "env_version": 1}
