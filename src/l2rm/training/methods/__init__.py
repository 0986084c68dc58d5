"""Methods of learning from partly mismatched pairs, a file each, all in the same trainer."""
