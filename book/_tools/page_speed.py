"""Measure every page of the built site as a slow phone sees it, and count what axe-core objects to.

    python book/_tools/page_speed.py [--runs N] [--output book/results/pages.json] [PAGE …]

The network is Lighthouse's slow 4G, the processor is slowed down four times, nothing is in the
cache. What is measured: what comes over the line, compressed, until a page has loaded, and until it
has been read to its end; the first text; the formulas, in their font; the end of loading.
"""

import argparse
import functools
import gzip
import http.server
import statistics
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import chromium
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import sync_playwright

from densenet_tutorial.experiments.benchmarks import write_results

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "_build" / "html"

PHONE = {"viewport": {"width": 412, "height": 823}, "device_scale_factor": 1.75, "is_mobile": True}
LATENCY = 562.5  # ms from a request to the first byte of its answer
DOWNLOAD, UPLOAD = 1474.56, 675.0  # kbit/s
SLOWDOWN = 4  # of the processor

# When the last font has come, and the frame after it is on the screen.
FONTS = """
document.fonts.addEventListener('loadingdone', () => requestAnimationFrame(
  () => setTimeout(() => { window.fontsDrawn = performance.now(); })));
"""
TIMES = """
async () => {
  await document.fonts.ready;
  await new Promise(done => setTimeout(done, 300));
  const text = performance.getEntriesByName('first-contentful-paint')[0].startTime;
  const formulas = document.querySelectorAll('article math').length;
  const loaded = performance.getEntriesByType('navigation')[0].loadEventEnd;
  return [text, formulas ? Math.max(text, window.fontsDrawn ?? Infinity) : null, loaded];
}
"""
READ = """
async () => {
  for (let y = 0; y < document.body.scrollHeight; y += 400) {
    scrollTo(0, y);
    await new Promise(done => setTimeout(done, 20));
  }
  const missing = () => [...document.images].some(e => e.checkVisibility() && !e.complete);
  while (missing()) await new Promise(done => setTimeout(done, 50));
  await new Promise(done => setTimeout(done, 200));
}
"""


@dataclass
class Figures:
    """What was measured of one page: KB are 1,000 bytes, times are seconds."""

    page: str
    requests: int
    kilobytes: float
    kilobytes_read: float
    first_text: float
    formulas: float | None
    loaded: float
    findings: int


class Compressing(http.server.SimpleHTTPRequestHandler):
    """A server that compresses text, as those do that host sites."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        self.send_response(200)
        self.send_header("Content-Type", self.guess_type(path))
        if path.suffix in {".css", ".html", ".js", ".json", ".svg", ".txt", ".xml"}:
            content = gzip.compress(content)
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


def load(browser, address):
    """Load a page once: requests, bytes, bytes when it has been read, times in ms."""
    context = browser.new_context(**PHONE)
    tab = context.new_page()
    tab.add_init_script(FONTS)
    devtools = context.new_cdp_session(tab)
    requests, sizes = set(), []
    devtools.on("Network.requestWillBeSent", lambda event: requests.add(event["requestId"]))
    devtools.on("Network.loadingFinished", lambda event: sizes.append(event["encodedDataLength"]))
    devtools.send("Network.enable")
    devtools.send("Network.setCacheDisabled", {"cacheDisabled": True})
    slow = {
        "offline": False,
        "latency": LATENCY,
        "downloadThroughput": DOWNLOAD * 1024 / 8,
        "uploadThroughput": UPLOAD * 1024 / 8,
    }
    quick = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    devtools.send("Network.emulateNetworkConditions", slow)
    devtools.send("Emulation.setCPUThrottlingRate", {"rate": SLOWDOWN})
    tab.goto(address, wait_until="load")
    times = tab.evaluate(TIMES)
    before = len(requests), sum(sizes)
    devtools.send("Emulation.setCPUThrottlingRate", {"rate": 1})
    devtools.send("Network.emulateNetworkConditions", quick)
    tab.evaluate(READ)
    context.close()
    return *before, sum(sizes), times


def findings(browser, address):
    """How many of axe-core's rules a page breaks, everything unfolded, light and dark."""
    broken = set()
    for scheme in "light", "dark":
        context = browser.new_context(color_scheme=scheme)
        tab = context.new_page()
        tab.goto(address)
        tab.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true; })")
        tab.wait_for_timeout(500)  # what unfolds fades in
        options = {"resultTypes": ["violations"], "preload": False}
        broken |= {v["id"] for v in Axe().run(tab, options=options).response["violations"]}
        context.close()
    return len(broken)


def measure(browser, base, page, runs):
    """The figures of one page; times are medians of `runs`."""
    loads = [load(browser, base + page) for _ in range(runs)]
    seconds = [
        None if None in column else round(statistics.median(column) / 1000, 2)
        for column in zip(*(times for *_, times in loads), strict=True)
    ]
    requests, size, read, _ = loads[-1]
    return Figures(
        page,
        requests,
        round(size / 1000, 1),
        round(read / 1000, 1),
        *seconds,
        findings(browser, base + page),
    )


def pages(site):
    """Every page of the book, the first one first."""
    found = sorted(path.relative_to(site).as_posix() for path in (site / "book").rglob("*.html"))
    return sorted(found, key=lambda page: (page.count("/"), page != "book/index.html", page))


def table(figures):
    """The rows of the CSV file."""
    header = (
        "Page,Requests,KB,KB when read to the end,First text (s),Formulas (s),Loaded (s),"
        "Findings of axe-core"
    )
    rows = [tuple(header.split(","))]
    for f in figures:
        title = f.page.removeprefix("book/").removesuffix(".html")
        drawn = "no formulas" if f.formulas is None else f"{f.formulas:.1f}"
        rows.append(
            (
                title,
                str(f.requests),
                f"{f.kilobytes:.0f}",
                f"{f.kilobytes_read:.0f}",
                f"{f.first_text:.1f}",
                drawn,
                f"{f.loaded:.1f}",
                str(f.findings),
            )
        )
    return rows


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", nargs="*", help="book/02_dense_layer.html …; default: every page")
    parser.add_argument("--runs", type=int, default=3, help="times are medians of so many")
    parser.add_argument("--output", type=Path, default=ROOT / "book" / "results" / "pages.json")
    options = parser.parse_args(arguments)
    if not (SITE / "index.html").is_file():
        sys.exit("page_speed: there is no site in _build/html: type `make book` first")
    handler = functools.partial(Compressing, directory=SITE)
    with (
        http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server,
        sync_playwright() as playwright,
    ):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser = chromium.launch(playwright)
        figures = []
        for page in options.page or pages(SITE):
            base = f"http://127.0.0.1:{server.server_port}/"
            figures.append(measure(browser, base, page, options.runs))
            print(figures[-1], flush=True)
        setting = {
            "browser": f"Chromium {browser.version}",
            "latency": f"{LATENCY} ms",
            "download": f"{DOWNLOAD} kbit/s",
            "processor": f"slowed down {SLOWDOWN} times",
            "window": "412 x 823, 1.75 pixels a CSS pixel",
            "runs": options.runs,
        }
        browser.close()
        server.shutdown()
    write_results(options.output, "make pagespeed", setting, figures, table(figures))


if __name__ == "__main__":
    main()
