"""A playground in network namespaces and on faulty disks, under verified load, while everything fails by turns."""
