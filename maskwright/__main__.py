"""`python -m maskwright`, and `torchrun -m maskwright` for several processes."""

from maskwright.cli import main

main()
