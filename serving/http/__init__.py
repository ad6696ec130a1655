"""The wire: connections, heads and bodies, who may ask, and the end of the server."""
