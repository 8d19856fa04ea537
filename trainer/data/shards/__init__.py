"""Sharded datasets: TFRecord shards with an index of every image, for datasets too large for one machine.

Any readable source is packed into a folder or bucket by any number of processes. The shards are read as a
`Dataset` in any order, with little memory.
"""
