"""Images and captions become features: frozen encoders, decoded pixels in, region vectors out."""
