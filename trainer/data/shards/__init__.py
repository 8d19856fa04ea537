"""Data sets that outgrow one machine: TFRecord shards with an index of every image.

In: any source that can be read. Out: shards in a folder or a bucket, packed by any number of processes, and
a `Dataset` that reads them in any order with little memory.
"""
