"""Make `book/_static/typeface.woff2`, the font of headings and controls: Figtree, cut down to what
English needs.

    pip install fonttools brotli
    npm pack @fontsource-variable/figtree && tar xzf fontsource-variable-figtree-*.tgz
    python book/_tools/make_typeface.py package/files/figtree-latin-wght-normal.woff2

Figtree is by Erik Kennedy, under the SIL Open Font License: `typeface.LICENSE` beside the font. A
sign that it lacks comes from the system's font.
"""

import io
import sys
from pathlib import Path

from fontTools import subset
from fontTools.ttLib import TTFont
from fontTools.varLib import instancer

FONT = Path(__file__).resolve().parents[1] / "_static" / "typeface.woff2"
SIGNS = "".join(chr(c) for c in range(0x20, 0x7F)) + "\u00a0·×–—‘’“”…é°−"
WEIGHTS = (400, 800)


def main(source):
    options = subset.Options(
        layout_features=["kern", "liga", "tnum", "mark", "ccmp"],
        hinting=False,
        notdef_outline=True,
        name_IDs=[0, 1, 2, 3, 4, 5, 6, 7, 13, 14],
    )
    font = TTFont(source)
    cut = subset.Subsetter(options)
    cut.populate(text=SIGNS)
    cut.subset(font)
    # What was dropped is gone for good only in a file that is read again.
    font.flavor = None
    font.save(whole := io.BytesIO())
    whole.seek(0)
    font = instancer.instantiateVariableFont(TTFont(whole), {"wght": WEIGHTS})
    font.flavor = "woff2"
    font.save(FONT)
    print(f"{FONT}: {FONT.stat().st_size} bytes")


if __name__ == "__main__":
    main(*sys.argv[1:])
