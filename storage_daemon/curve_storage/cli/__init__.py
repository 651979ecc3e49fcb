"""The `curve` command."""
