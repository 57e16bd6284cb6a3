"""Make `book/_static/math.woff2`, the font of formulas: STIX Two Math, cut down to what they use.

    pip install fonttools brotli
    python book/_tools/make_math_font.py STIXTwoMath-Regular.ttf

STIX Two Math is under the SIL Open Font License, without a reserved name; releases are at
https://github.com/stipub/stixfonts. A test says when a formula has a sign that the cut font lacks.
"""

import sys
from pathlib import Path

from fontTools import subset

FONT = Path(__file__).resolve().parents[1] / "_static" / "math.woff2"

LATIN = "".join(chr(c) for c in range(0x20, 0x7F))
GREEK = "ΓΔΘΛΞΠΣΦΨΩαβγδεζηθικλμνξοπρςστυφχψωϕϑϵϱϖ"
SIGNS = "ˆ˜¯˙→←↔⇒∂∇∈∉∑∏∫−∓±×÷⋅·∗∘√∞∝≈≡≠≤≥≪≫≲≳⊂⊆∪∩∀∃∣∥⌊⌋⌈⌉⟨⟩…⋯⋮⋱⊙⊕⊗ℓℎℝ⏞⏟⎴⎵′″‖‾¯"
ACCENTS = "\u0302\u0303\u0332\u20d7"
# Where Unicode has the letters of formulas.
LETTERS = [
    *range(0x1D434, 0x1D468),  # italic
    *range(0x1D400, 0x1D434),  # bold
    *range(0x1D49C, 0x1D4B6),  # script capitals, of which Unicode had some before
    *[ord(c) for c in "ℬℰℱℋℐℒℳℛℂℍℕℙℚℝℤ\ufe00"],
    *range(0x1D6FC, 0x1D71C),  # italic Greek
]


def narrow_roots(font):
    """Give tall root signs the width of the small one.

    Chromium reserves the width of the widest for every root, so that a gap would follow each.
    """
    name = font.getBestCmap()[ord("√")]
    width, _ = font["hmtx"][name]
    variants = font["MATH"].table.MathVariants
    root = variants.VertGlyphConstruction[variants.VertGlyphCoverage.glyphs.index(name)]
    glyphs = {record.VariantGlyph for record in root.MathGlyphVariantRecord}
    glyphs |= {record.glyph for record in root.GlyphAssembly.PartRecords}
    for glyph in glyphs:
        factor = width / font["hmtx"][glyph][0]
        outline = font["glyf"][glyph]
        outline.coordinates.scale((factor, 1))
        outline.coordinates.toInt()
        outline.recalcBounds(font["glyf"])
        font["hmtx"][glyph] = (width, outline.xMin)


def widen_accents(font):
    """Give accents a width of their own: combining signs have none, and would stand to the left."""
    variants = font["MATH"].table.MathVariants
    coverage = variants.HorizGlyphCoverage.glyphs
    for accent in ACCENTS:
        name = font.getBestCmap()[ord(accent)]
        glyphs = {name}
        if name in coverage:
            construction = variants.HorizGlyphConstruction[coverage.index(name)]
            glyphs |= {record.VariantGlyph for record in construction.MathGlyphVariantRecord}
        for glyph in glyphs:
            outline = font["glyf"][glyph]
            if font["hmtx"][glyph][0] == 0 and outline.numberOfContours > 0:
                outline.coordinates.translate((-outline.xMin, 0))
                outline.recalcBounds(font["glyf"])
                font["hmtx"][glyph] = (outline.xMax, 0)


def main(source):
    options = subset.Options(
        flavor="woff2",
        layout_features=[],
        hinting=False,
        notdef_outline=True,
        name_IDs=[0, 1, 2, 3, 4, 5, 6, 7, 13, 14],
    )
    font = subset.load_font(source, options)
    cut = subset.Subsetter(options)
    cut.populate(text=LATIN + GREEK + SIGNS + ACCENTS, unicodes=LETTERS)
    cut.subset(font)
    narrow_roots(font)
    widen_accents(font)
    subset.save_font(font, FONT, options)
    print(f"{FONT}: {FONT.stat().st_size} bytes")


if __name__ == "__main__":
    main(*sys.argv[1:])
