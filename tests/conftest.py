"""What all tests share: examples drawn, and where log lines go.

Property tests draw the same examples in every run, on a developer's machine as in CI. Hypothesis
does so by itself only where it finds CI; what failed there could not be met elsewhere. `make
faults` explores: it draws new examples each time.
"""

from __future__ import annotations

import sys

import structlog
from hypothesis import settings

settings.register_profile("same", derandomize=True, deadline=None, print_blob=True)
settings.register_profile("exploring", derandomize=False, deadline=None, print_blob=True)
settings.load_profile("same")

# Not to where commands print: a thread of another test may write a line at any moment.
structlog.configure(logger_factory=lambda *_: structlog.PrintLogger(sys.stderr))
