"""Other storage systems with three replicas, set up on this machine, measured with the same jobs, and taken down."""
