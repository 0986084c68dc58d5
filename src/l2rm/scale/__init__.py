"""Data sets of many shards: embedded, judged and rematched shard by shard, on one machine or many."""
