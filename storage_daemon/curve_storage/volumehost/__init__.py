"""The node side: nothing short of a reboot may break a mount.

`keeper` holds descriptors, `host` is what the CSI plugin talks to, `volume_process` serves one volume.
`packet` messages on unix sockets · `data_process` one data process seen from the host · `attachment` one volume's
life · `state` what is on disk · `probe` calls that can hang, in a helper · `leftovers` what a node still has of volumes
nobody owns · `service` gRPC.
"""
