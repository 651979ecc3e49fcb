"""The operator's own metrics."""

from __future__ import annotations

from curve_storage.telemetry import metrics

ROUNDS = metrics.counter("curve_operator_rounds_total", "Reconcile rounds")
ERRORS = metrics.counter("curve_operator_round_errors_total", "Reconcile rounds that failed as a whole")
DURATION = metrics.histogram("curve_operator_round_seconds", "Duration of a reconcile round")
CLUSTERS = metrics.gauge("curve_operator_clusters", "Clusters looked after")
LEADER = metrics.gauge("curve_operator_leader", "1 when this process is the active operator")
WATCH_EVENTS = metrics.counter("curve_operator_watch_events_total", "Watch events received", ["kind"])
