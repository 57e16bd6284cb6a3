"""What the first page takes from elsewhere while the site is built: measured numbers from the files
of results, a card for each chapter from the chapter itself, and drawings.

In `book/index.md` each has a name in double braces, `{{ accuracy }}`, or inside of a comment where
nothing should show on GitHub.
"""

import base64
import html
import json
import re
import sys
from pathlib import Path

from markdown_it import MarkdownIt
from sphinx.errors import ExtensionError

HERE = Path(__file__).resolve().parent
sys.path += [str(HERE), str(HERE.parent / "_tools")]
import contents
import reading
import thumbnails

import densenet_tutorial

PLACE = re.compile(r"(?:<!-- *)?\{\{ *(\w+) *\}\}(?: *-->)?")
RESULTS = {
    "memory": "book/results/memory-densenet121-cpu.json",
    # Three runs, since times differ between processes: the first page shows the slowest gain.
    **{
        f"speed{run}": f"densenet_tutorial/experiments/results/speed-densenet121-cpu{run}.json"
        for run in ("", "-run2", "-run3")
    },
    "gpu": "densenet_tutorial/experiments/results/speed-densenet121-gpu.json",
    "weights": "densenet_tutorial/weights/bundled/fashion-mnist-small.json",
}
MIB = 2**20


def measured(root):
    """The numbers on the first page as text, and what the drawings are made from."""
    files = {
        name: json.loads(Path(root, path).read_text(encoding="utf-8"))
        for name, path in RESULTS.items()
    }
    memory = {row["name"]: row for row in files["memory"]["figures"]}
    images = files["memory"]["setting"]["batch_size"]
    kept = {name: row["saved"] / images / MIB for name, row in memory.items()}
    runs = [
        {
            row["name"]: row["ratio"]
            for row in content["figures"]
            if (row["task"], row["batch_size"]) == ("predict", 8)
        }
        for name, content in files.items()
        if name.startswith("speed")
    ]
    runs.sort(key=lambda ratios: ratios["optimized"])
    speed = runs[-1]
    gpu = {
        row["name"]: row["ratio"]
        for row in files["gpu"]["figures"]
        if (row["task"], row["batch_size"]) == ("train", 64)
    }
    weights = files["weights"]
    ours = ["ours", "ours, checkpoint", "ours, recompute", "ours, minimal"]
    return {
        "memory": f"{kept['ours, minimal']:.1f}",
        "memory_torchvision": f"{kept['torchvision']:.1f}",
        "memory_torchvision_efficient": f"{kept['torchvision, memory-efficient']:.1f}",
        "memory_time": f"{memory['ours, minimal']['ratio']:.2f}",
        "memory_time_gpu": f"{gpu['ours, minimal, channels_last']:.1f}",
        "accuracy": f"{100 * weights['test_accuracy']:.2f}",
        "parameters": f"{weights['parameters']:,}",
        "speed": f"{1 / speed['optimized']:.1f}",
        "speed_best": f"{1 / runs[0]['optimized']:.1f}",
        "speed_channels_last": f"{1 / speed['torchvision, channels_last']:.1f}",
        "version": densenet_tutorial.__version__,
        "kept": [kept[name] for name in ours],
    }


def chapters(root):
    """Title, question, minutes and needs of each chapter in `_toc.yml`."""
    return [chapter(root, file) for file in contents.pages(root) if re.match(r"book/\d\d_", file)]


def chapter(root, file):
    """What the first page says about one chapter."""
    notebook = json.loads(Path(root, f"{file}.ipynb").read_text(encoding="utf-8"))
    text = "".join(notebook["cells"][0]["source"])
    title = re.match(r"# (\d+) · (.+)", text)
    question = re.search(r"\*\*The question of this chapter:\*\* (.+)", text)
    last = re.search(r"^You need (.+)", text, re.MULTILINE)
    if not (title and question and last):
        raise ExtensionError(
            f"{file}: the first cell has to give a title, the question, and what the reader needs"
        )
    needs = sorted({int(n) for n in re.findall(r"\((\d\d)_\w+\.ipynb\)", last[1])})
    if not needs:
        words = "no other chapter"
    elif len(needs) == 1:
        words = f"chapter {needs[0]}"
    else:
        words = f"chapters {', '.join(map(str, needs[:-1]))} and {needs[-1]}"
    return {
        "file": file,
        "number": title[1],
        "title": title[2],
        # It follows a colon there.
        "question": re.sub("[A-Za-z]", lambda first: first[0].upper(), question[1], count=1),
        "minutes": reading.minutes(Path(root, f"{file}.ipynb")),
        "needs": words,
    }


def card(link, drawing, title, text, more=""):
    """An entry of a list of cards: all of it is the link."""
    say = MarkdownIt(options_update={"typographer": True}).enable("smartquotes").renderInline
    return (
        f'<li>{drawing}<h3><a href="{html.escape(link)}">{say(title)}</a></h3><p>{say(text)}</p>'
        + (f'<p class="more">{more}</p>' if more else "")
        + "</li>"
    )


def chapter_cards(root, address, numbers):
    """A list of the chapters."""
    cards = [
        card(
            address(each["file"]),
            thumbnails.thumbnail(re.sub(r"book/\d\d_", "", each["file"]), numbers),
            f"{each['number']} · {each['title']}",
            each["question"],
            f"{each['minutes']} minutes · needs {each['needs']}",
        )
        for each in chapters(root)
    ]
    return '<ol class="cards">' + "\n".join(cards) + "</ol>"


def play_cards(address, numbers):
    """A list of the pages to play with."""
    pages = {
        "explorer": "Draw any DenseNet",
        "live": "Take one apart",
    }
    said = {
        "explorer": "Set the growth rate, the blocks, the stem. The explorer draws the network to "
        "scale and counts parameters, multiply-adds and memory while you change it.",
        "live": "A trained DenseNet runs in the page, on a picture that you draw. Cut a connection "
        "and see what it was worth.",
    }
    cards = [
        card(address(f"book/{name}"), thumbnails.thumbnail(name, numbers), title, said[name])
        for name, title in pages.items()
    ]
    return '<ul class="cards">' + "\n".join(cards) + "</ul>"


def fill_in(app, docname, source):
    """Put everything that has a name into the first page."""
    if docname != app.config.root_doc:
        return
    root = Path(app.srcdir)

    def address(page):
        return app.builder.get_relative_uri(docname, page)

    numbers = measured(root)
    values = numbers | {
        "block": thumbnails.block(),
        "chapters": chapter_cards(root, address, numbers),
        "play": play_cards(address, numbers),
    }

    def value(match):
        if match[1] not in values:
            raise ExtensionError(f"{docname}: nothing is called {match[1]}")
        return str(values[match[1]])

    source[0] = PLACE.sub(value, source[0])


def read_again(app, env, added, changed, removed):
    """The page shows what stands in other files: read it in every build."""
    return [app.config.root_doc]


def add_style(app, pagename, templatename, context, doctree):
    """Load the page's style sheet there and nowhere else."""
    if pagename == app.config.root_doc:
        app.add_css_file("home.css")


def embed_typeface(app, exception):
    """Put the font into its style sheet, so that it is there with the first text."""
    if exception or app.builder.format != "html":
        return
    static = Path(app.outdir, "_static")
    font = base64.b64encode((static / "typeface.woff2").read_bytes()).decode()
    sheet = static / "typeface.css"
    text = sheet.read_text(encoding="utf-8")
    address = f"data:font/woff2;base64,{font}"
    sheet.write_text(text.replace("typeface.woff2", address), encoding="utf-8")


def setup(app):
    app.add_css_file("typeface.css")
    app.connect("source-read", fill_in)
    app.connect("env-get-outdated", read_again)
    app.connect("html-page-context", add_style)
    app.connect("build-finished", embed_typeface)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
