"""Many callers' pictures drawn together by one pipeline."""
