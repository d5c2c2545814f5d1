"""What Markdown has no word for: captions of pictures, and sections that fold.

A picture that stands alone is a figure, and what it shows, its alternative text, is its caption. A
page with a line ``<!-- fold -->`` shows its sections closed; a link to one opens it, by extra.css.
"""

from typing import Any
from xml.etree.ElementTree import Element, SubElement

from markdown import Extension, Markdown
from markdown.preprocessors import Preprocessor
from markdown.treeprocessors import Treeprocessor

FOLD = "<!-- fold -->"


class Marks(Preprocessor):
    """Notes whether the page folds."""

    folds = False

    def run(self, lines: list[str]) -> list[str]:
        """Take the mark out."""
        self.folds = FOLD in lines
        return [line for line in lines if line != FOLD]


class Shapes(Treeprocessor):
    """Makes figures of pictures, and details of sections."""

    def __init__(self, md: Markdown, marks: Marks) -> None:
        """Take what the marks of the page will have said."""
        super().__init__(md)
        self.marks = marks

    def run(self, root: Element) -> None:
        """Change the tree of a page."""
        for paragraph in root.iter("p"):
            inside = list(paragraph)
            texts = (paragraph.text or "") + "".join(one.tail or "" for one in inside)
            if [one.tag for one in inside] == ["img"] and not texts.strip():
                paragraph.tag = "figure"
                caption = SubElement(paragraph, "figcaption", {"aria-hidden": "true"})
                caption.text = inside[0].get("alt")
        for details in root.iter(
            "details"
        ):  # a whole program, which search would find for any word
            details.set("data-search-exclude", "")
        if self.marks.folds:
            into = root
            for element in list(root):
                if element.tag == "h2":
                    place = list(root).index(element)
                    into = Element("details")
                    SubElement(into, "summary").text = "Figures"
                    root.insert(place + 1, into)
                elif into is not root:
                    root.remove(element)
                    into.append(element)


class Figures(Extension):
    """What ``mkdocs.yml`` names."""

    def extendMarkdown(self, md: Markdown) -> None:
        """Run behind ``attr_list``, which gives a picture its width."""
        marks = Marks(md)
        md.preprocessors.register(marks, "marks", 35)  # before HTML is taken out
        md.treeprocessors.register(Shapes(md, marks), "shapes", 4)


def makeExtension(**options: Any) -> Figures:
    """Python-Markdown asks a module for it."""
    return Figures(**options)
