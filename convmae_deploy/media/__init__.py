"""Photos and videos from bytes of strangers: formats, limits, orientation, frames."""
