"""Style sheets taken apart: rule by rule, and without the rules that a site has no use for."""

import re

# What may hold a brace, a comma or a semicolon that is not the style sheet's own.
WHOLE = r"/\*.*?\*/|\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'|url\([^\"')][^)]*\)"
TOKEN = re.compile(rf"(?P<whole>{WHOLE})|[{{}};]", re.DOTALL)
COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
PART = re.compile(rf"(?P<whole>{WHOLE}|\\.)|[()\[\],]", re.DOTALL)
CLASS = re.compile(r"\.(-?(?:[A-Za-z_]|\\.)(?:[\w-]|\\.)*)")
NESTING = ("@media", "@supports", "@container", "@layer")


def rules(css):
    """Yield what stands before each pair of braces, and what stands inside.

    Statements without braces, such as ``@charset "UTF-8";``, come with None in place of the inside.
    """
    begin, opened, depth = 0, 0, 0
    for match in TOKEN.finditer(css):
        if match["whole"]:
            continue
        if match[0] == "{":
            depth += 1
            if depth == 1:
                opened = match.end()
        elif match[0] == "}":
            depth -= 1
            if depth == 0:
                yield css[begin : opened - 1].strip(), css[opened : match.start()]
                begin = match.end()
        elif depth == 0:
            yield css[begin : match.end()].strip(), None
            begin = match.end()


def selectors(before):
    """The selectors in what stands before a rule's braces."""
    before = COMMENT.sub("", before)
    found, begin, depth = [], 0, 0
    for match in PART.finditer(before):
        if match["whole"]:
            continue
        if match[0] in "([":
            depth += 1
        elif match[0] in ")]":
            depth -= 1
        elif depth == 0:
            found.append(before[begin : match.start()].strip())
            begin = match.end()
    return [*found, before[begin:].strip()]


def needed(css, has):
    """The style sheet without selectors of classes for which `has` is false.

    Classes inside of parentheses do not count: ``:not(.a)`` holds where there is no ``a``.
    """
    found, end = [], 0
    for before, inside in rules(css):
        end = css.index(before, end) + len(before) + len(inside or "")
        name = COMMENT.sub("", before).strip()
        if inside is None:
            found.append(before)
        elif name.startswith(NESTING):
            kept = needed(inside, has)
            rules_left = COMMENT.sub("", kept).strip()
            found.append(f"{before}{{{kept}}}" if rules_left else licences(before) + kept)
        elif name.startswith("@"):
            found.append(f"{before}{{{inside}}}")
        else:
            kept = [each for each in selectors(before) if all(map(has, classes(each)))]
            rule = f"{','.join(kept)}{{{inside}}}" if kept else ""
            found.append(licences(before) + rule)
    found.append(licences(css[end:]))
    return "\n".join(filter(None, found))


def licences(text):
    """The comments in a part of a style sheet that have to stay."""
    return "".join(each for each in COMMENT.findall(text) if each.startswith("/*!"))


def classes(selector):
    """The classes without which nothing matches a selector."""
    inner = re.compile(r"(?<!\\)\([^()]*\)|(?<!\\)\[[^\]]*\]")
    while inner.search(selector):
        selector = inner.sub("", selector)
    return [re.sub(r"\\(.)", r"\1", name) for name in CLASS.findall(selector)]
