"""A volume becomes a block device.

`device` what is served · `volume_file` a FUSE file system with the volume as its one file · `loop` the loop device over
that file · `nbd_protocol`, `nbd_server` the same volume over NBD · `file_device` a local file instead of a volume, for
tests and benchmarks.
"""
