"""Code that a user wrote: what it raises is told with step, file and line, and is no bug of ours."""

from __future__ import annotations

import sys

from nemotron.errors import NemotronError, Origin

PACKAGE = "nemotron_own_steps_"
"""What the names of packages begin with that folders of one's own steps become."""
STEP_ID = "nemotron_step_id"
"""The attribute of such a package that says whose it is."""


class OwnCodeError(NemotronError):
    """A step of one's own raised something else than an error with message, place and fix."""


def raised_by_own_code(error: BaseException) -> OwnCodeError | None:
    """The error to tell of one that passed through the code of a step of one's own; None of every other.

    The place is the last line of the step's own: what it calls was called by it.
    """
    import traceback  # light commands have no use for it

    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        name = str(frame.f_globals.get("__name__", ""))
        if name.startswith(PACKAGE):
            step = getattr(sys.modules.get(name.partition(".")[0]), STEP_ID, "?")
            if isinstance(error, SystemExit):
                what = f"ended the process: `sys.exit({'' if error.code is None else repr(error.code)})`"
                hint: str | None = "raise an error that says why: a `NemotronError` with message and fix"
            else:
                text = str(error).partition("\n")[0]
                what, hint = f"raised {type(error).__name__}{': ' if text else ''}{text}", None
            place = Origin(frame.f_code.co_filename, line)
            return OwnCodeError(f"the step `{step}` {what}", hint=hint, origin=place)
    return None
