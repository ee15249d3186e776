# SPDX-License-Identifier: Apache-2.0
"""The paper that a kind of thought comes from, as model cards cite it."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Paper:
    """
    A paper on arXiv.

    Args:
        title (`str`).
        arxiv (`str`): its number, such as `2509.19170`.
        authors (`tuple` of `str`): all of them, given names first. Empty: the citation names none.
    """

    title: str
    arxiv: str
    authors: tuple[str, ...] = ()

    @property
    def url(self) -> str:
        return f"https://arxiv.org/abs/{self.arxiv}"

    @property
    def year(self) -> int:
        """Of its first version: arXiv's numbers begin with it."""
        return 2000 + int(self.arxiv[:2])

    def bibtex(self) -> str:
        """The paper's BibTeX entry."""
        first = self.authors[0].split()[-1].lower() if self.authors else "arxiv"
        word = re.sub(r"\W", "", self.title.split()[0]).lower()
        fields = {
            "title": f"{{{{{self.title}}}}}",
            "author": f"{{{' and '.join(self.authors)}}}" if self.authors else None,
            "year": str(self.year),
            "eprint": f"{{arXiv:{self.arxiv}}}",
        }
        lines = [f"    {name:<12} = {value}," for name, value in fields.items() if value is not None]
        return "\n".join([f"@article{{{first}{self.year}{word},", *lines, "}"])
