"""A volume's health, from what the cluster and the node say, in both forms of the CSI specification. Pure."""

from __future__ import annotations

from typing import NamedTuple

from curve_csi.proto import csi_pb2 as csi
from curve_storage.proto import mds_pb2 as mds
from curve_storage.proto import volumehost_pb2 as host


class Condition(NamedTuple):
    abnormal: bool
    message: str
    kind: int = csi.DEGRADED


HEALTHY = Condition(False, "The volume is healthy")


def volume_condition(status: mds.StatusReply) -> Condition:
    """The cluster's word for all its volumes: a degraded cluster serves I/O but has lost redundancy."""
    reasons = "; ".join(reason.message for reason in status.reasons)
    if status.health == "healthy":
        return HEALTHY
    if status.health == "unavailable":
        return Condition(True, reasons or "Parts of the cluster cannot serve I/O", csi.INACCESSIBLE)
    return Condition(True, reasons or "Some replicas are missing", csi.DEGRADED)


def attachment_condition(attachment: host.Attachment) -> Condition:
    if attachment.health == host.HEALTH_HEALTHY:
        return HEALTHY
    if attachment.health == host.HEALTH_STALLED:
        return Condition(True, f"I/O waits: {attachment.message}", csi.DEGRADED)
    if attachment.health == host.HEALTH_FENCED:
        return Condition(True, attachment.message or "Another node has taken the volume", csi.INACCESSIBLE)
    return Condition(True, attachment.message or "The volume's data process has failed", csi.INACCESSIBLE)


def volume_health(volume_id: str, condition: Condition) -> csi.VolumeHealth:
    """The form of CSI 1.13: no entry means healthy."""
    health = csi.VolumeHealth(volume_id=volume_id)
    if condition.abnormal:
        kind = csi.VolumeHealthErrorType.Name(condition.kind)  # type: ignore[arg-type]
        reason = "".join(word.capitalize() for word in kind.split("_"))
        health.health_statuses.add(status=condition.kind, reason=reason, message=condition.message)
    return health
