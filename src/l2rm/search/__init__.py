"""An index of images and captions: search by words, pictures, items or vectors; and its page."""
