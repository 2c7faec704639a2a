"""Reports as HTML files that open offline."""
