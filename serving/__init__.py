"""The HTTP server: one BentoML service around an ASGI application of our own."""
