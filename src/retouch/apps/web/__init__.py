"""The web page: one more door to the same requests. The server loads no model and decodes no clip itself."""
