# SPDX-License-Identifier: Apache-2.0
"""For the site: TRL writes the types of arguments in Markdown, and the site's tables show them as code."""

import re

import griffe


_ARGUMENT = re.compile(r"^( +\w[\w, ]* \()(.+)(\):.*)$", re.MULTILINE)


class Types(griffe.Extension):
    """Takes the Markdown out of the types."""

    def on_object(self, *, obj: griffe.Object, **kwargs) -> None:
        if obj.docstring is not None:
            obj.docstring.value = _ARGUMENT.sub(
                lambda found: found[1] + re.sub(r"[`*]", "", found[2]) + found[3], obj.docstring.value
            )
