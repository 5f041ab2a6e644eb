"""What a user can cause and mend."""

MOST_CHARACTERS = 479
"""Length of the longest message."""
_GAP = " … "


class UserError(ValueError):
    """A user's mistake. Its message is one line: what is wrong, where, what was got and what is allowed.

    Command lines print it without a traceback. Any other error is a defect of ours and keeps its traceback.

    Args:
        message: line breaks in it become spaces, and what cannot be printed is escaped. Where it is longer than
            `MOST_CHARACTERS`, as values may be of any length, its middle is left out.
    """

    def __init__(self, message: str):
        super().__init__(_in_one_line(message))


def _in_one_line(message: str) -> str:
    words = " ".join(_shortened(message, 4 * MOST_CHARACTERS).split())
    escaped = (char if char.isprintable() else char.encode("unicode_escape").decode() for char in words)
    return _shortened("".join(escaped), MOST_CHARACTERS)


def _shortened(text: str, most: int) -> str:
    """Returns a text of at most `most` characters. Where some are left out, the end keeps a third."""
    if len(text) <= most:
        return text
    end = most // 3
    return text[: most - len(_GAP) - end] + _GAP + text[-end:]
