"""The kernel's FUSE protocol in Python, on the descriptor itself.

`abi` constants and layouts · `handshake` what INIT negotiates · `mount` mount(2), umount(2) ·
`buffers` where requests land · `ops` what a file system implements · `dispatch` requests → ops ·
`session` the read loop, replies, notifications, takeover of a descriptor from a dead process.
"""
