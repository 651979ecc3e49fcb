"""The `CurveCluster` resource as typed models; the CRD is generated from them."""
