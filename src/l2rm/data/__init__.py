"""Pairs come in: tables of images and captions, features on disk, mismatches, words."""
