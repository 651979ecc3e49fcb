"""Pure decisions over a cluster view: each scheduler returns the steps it wants done now."""
