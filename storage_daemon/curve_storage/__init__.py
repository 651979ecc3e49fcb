"""Curve: replicated block volumes. See docs/architecture.md for the layers."""
