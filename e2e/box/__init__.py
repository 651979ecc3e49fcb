"""A real Kubernetes on one machine, for development and tests: `python -m e2e.box --help`, or `Box` from Python."""
