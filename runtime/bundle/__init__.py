"""The files of a bundle and of its engines: read strictly, written whole, and what was verified of them."""
