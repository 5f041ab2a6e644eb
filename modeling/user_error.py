"""What a user can cause and mend."""


class UserError(ValueError):
    """A user's mistake. Its message is one line: what is wrong, where, what was got and what is allowed.

    Command lines print it without a traceback. Any other error is a defect of ours and keeps its traceback.
    """
