"""Makes control characters visible, which could steer a terminal, in text from outside."""

import json
import unicodedata

_STEERING = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))
"""Unicode's categories of characters without a glyph: control, format, surrogate, separators."""


def visible(text: str, *, keep: str = "") -> str:
    r"""Write characters that could steer a terminal as JSON escapes, such as `\u001b`.

    Args:
        text: any text.
        keep: control characters that stay as they are, such as the newlines of a message.
    """
    if text.isprintable():
        return text
    return "".join(
        json.dumps(character)[1:-1]
        if character not in keep and unicodedata.category(character) in _STEERING
        else character
        for character in text
    )
