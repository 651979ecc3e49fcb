"""The CSI driver of Curve block volumes."""

import curve_storage as curve_storage  # first of all: it sets what gRPC reads at its import
