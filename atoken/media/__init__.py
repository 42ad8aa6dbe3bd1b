"""Images, videos, meshes and views as arrays, and the files they are read from and written to; nothing of tokens."""
