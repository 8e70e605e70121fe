"""Parts used by two systems or more."""
