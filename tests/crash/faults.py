"""Something happens at the n-th change a process makes to the files below a folder: a signal, or an error of the disk.

Python tells audit hooks of every file that is opened, renamed, removed or made. Counting these gives every point at
which the state on the disk changes a number, so that a run can be stopped at each of them in turn. Uses the standard
library alone.
"""

from __future__ import annotations
