"""What benchmarks say to a model beside their questions."""

from modeling.user_error import UserError

IMAGE = "<image>\n"
"""What stands before a question about one picture."""
SHORT_ANSWER = "\nAnswer the question using a single word or phrase."
OPTION_LETTER = "\nAnswer with the option's letter from the given choices directly."


def about_picture(text: str, where: str) -> str:
    """Returns a question with the mark of its picture before it. Raises UserError if it holds such a mark itself."""
    if "<image>" in text:
        raise UserError(f"{where}: got a question that holds the mark <image>: {text[:80]!r}")
    return IMAGE + text


def without_suffix(text: str, suffix: str, where: str) -> str:
    """Returns a text without its end, which must be `suffix`. Raises UserError, with `where`, if it is another."""
    if not text.endswith(suffix):
        raise UserError(f"{where}: got a text that ends with {text[-80:]!r}, it is to end with {suffix!r}")
    return text[: -len(suffix)]
