"""What a forked process inherits and cannot use: threads and devices stay with the process that made them.

Sessions, devices and schedulers are `ProcessBound`. In a child process they are never destroyed, since a destructor
would wait for threads that are not there, or call a driver that refuses; and to use one raises an error instead of
waiting for ever. Knows nothing of what they do.
"""

import ctypes
import os
import weakref
from typing import Final

from runtime.errors import RFError

_bound: Final["weakref.WeakSet[ProcessBound]"] = weakref.WeakSet()


class ProcessBound:
    """Belongs to the process that made it.

    Attributes:
        inherited: Whether that is a parent of this process.
    """

    def __init__(self) -> None:
        self.inherited = False
        _bound.add(self)

    def require_own_process(self) -> None:
        """Raises RFError where it belongs to a parent of this process."""
        if self.inherited:
            raise RFError(
                "This process was forked from the one that loaded the pipeline, and the threads and devices behind it "
                "stayed there. Load the pipeline here, after the fork (docs/robustness.md), or start processes with "
                "the method spawn."
            )


def _in_child() -> None:
    """Keep what was inherited for ever, with all that it refers to: the memory is shared with the parent anyway."""
    for each in list(_bound):
        each.inherited = True
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(each))
    _bound.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
