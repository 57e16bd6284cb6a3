"""References are labelled as the text names them: "He et al. 2016a" in place of "HZRS16a"."""

from collections import Counter
from string import ascii_lowercase

from pybtex.plugin import register_plugin
from pybtex.style.formatting.alpha import Style as AlphaStyle
from pybtex.style.labels import BaseLabelStyle

NAME = "author_year_labels"


def surname(person):
    return " ".join(map(str, (*person.rich_prelast_names, *person.rich_last_names)))


def label(entry):
    """Who wrote it, and when: one or two names, or the first of more."""
    names = [surname(person) for person in entry.persons.get("author", ())]
    if not names or "year" not in entry.fields:
        raise ValueError(f"references.bib: {entry.key} must have an author and a year")
    who = " and ".join(names) if len(names) <= 2 else f"{names[0]} et al."
    return f"{who} {entry.fields['year']}"


class Labels(BaseLabelStyle):
    def format_labels(self, sorted_entries):
        """A letter tells apart what the same authors wrote in the same year."""
        labels = [label(entry) for entry in sorted_entries]
        total, seen = Counter(labels), Counter()
        for each in labels:
            yield each + (ascii_lowercase[seen[each]] if total[each] > 1 else "")
            seen[each] += 1


class Style(AlphaStyle):
    """Sorted by author and year, as the style it comes from."""

    default_label_style = Labels


register_plugin("pybtex.style.formatting", NAME, Style)


def setup(app):
    """`bibtex_default_style` in _config.yml names the style."""
    return {"parallel_read_safe": True, "parallel_write_safe": True}
