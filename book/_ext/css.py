"""Style sheets taken apart: rule by rule, and without the rules that a site has no use for."""

import re

# What may hold a brace, a comma or a semicolon that is not the style sheet's own.
WHOLE = r"/\*.*?\*/|\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'|url\([^\"')][^)]*\)"
TOKEN = re.compile(rf"(?P<whole>{WHOLE})|[{{}};]", re.DOTALL)
COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
COMMA = re.compile(r",(?![^()]*\))")
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
    return [each.strip() for each in COMMA.split(COMMENT.sub("", before))]


def needed(css, has):
    """The style sheet without selectors of classes for which `has` is false.

    Classes inside of parentheses do not count: ``:not(.a)`` holds where there is no ``a``.
    """
    found = []
    for before, inside in rules(css):
        name = COMMENT.sub("", before).strip()
        licences = "".join(each for each in COMMENT.findall(before) if each.startswith("/*!"))
        if inside is None:
            found.append(before)
        elif name.startswith(NESTING):
            if kept := needed(inside, has):
                found.append(f"{before}{{{kept}}}")
        elif name.startswith("@"):
            found.append(f"{before}{{{inside}}}")
        elif kept := [each for each in selectors(before) if all(map(has, classes(each)))]:
            found.append(f"{licences}{','.join(kept)}{{{inside}}}")
        elif licences:
            found.append(licences)
    return "\n".join(found)


def classes(selector):
    """The classes without which nothing matches a selector."""
    inner = re.compile(r"\([^()]*\)|\[[^\]]*\]")
    while inner.search(selector):
        selector = inner.sub("", selector)
    return CLASS.findall(selector)
