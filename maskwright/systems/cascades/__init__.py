"""Tasks one after the other, and the successor that reads all from the same maps: MNC, FCIS."""
