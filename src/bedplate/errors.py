"""What the package raises on purpose. Anything else that reaches a user is a defect of ours."""


class InputError(ValueError):
    """Bad input, told in one sentence that names the file, line, key or value and the remedy.

    The command line prints the message without a traceback and exits with code 2; Python callers catch it as a
    `ValueError`.
    """


class Interrupted(KeyboardInterrupt):
    """A run that was told to stop (Ctrl-C, SIGTERM), has saved, and says how to go on. Exit code 130."""


class RankError(RuntimeError):
    """Another process of the run has died or hangs: told in one sentence, exit code 1."""
