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
SIGNS = "ˆ˜¯˙→←↔⇒∂∇∈∉∑∏∫−∓±×÷⋅·∗∘√∞∝≈≡≠≤≥≪≫≲≳⊂⊆∪∩∀∃∣∥⌊⌋⌈⌉⟨⟩…⋯⋮⋱⊙⊕⊗ℓℎℝ⏞⏟⎴⎵′"
# Where Unicode has the letters of formulas.
LETTERS = [
    *range(0x1D434, 0x1D468),  # italic
    *range(0x1D400, 0x1D434),  # bold
    *range(0x1D49C, 0x1D4B6),  # script capitals, of which Unicode had some before
    *[ord(c) for c in "ℬℰℱℋℐℒℳℛℂℍℕℙℚℝℤ\ufe00"],
    *range(0x1D6FC, 0x1D71C),  # italic Greek
]


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
    cut.populate(text=LATIN + GREEK + SIGNS, unicodes=LETTERS)
    cut.subset(font)
    subset.save_font(font, FONT, options)
    print(f"{FONT}: {FONT.stat().st_size} bytes")


if __name__ == "__main__":
    main(*sys.argv[1:])
