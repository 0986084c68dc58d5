"""Docstrings here head their examples with `Example:`; Griffe knows `Examples:` alone. An extension of Griffe."""

import re
from typing import Any

from griffe import Extension, Object


class ExampleSections(Extension):
    """Has examples shown as the code that they are."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Rename the section."""
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
