"""Several systems or runs, one data set, one report."""

from maskwright.comparison.comparing import compare

__all__ = ["compare"]
