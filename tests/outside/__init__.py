"""What somebody else's package looks like: a system of its own, without a line of maskwright changed."""
