"""What runs a graph. The only place of the library that imports a runtime."""
