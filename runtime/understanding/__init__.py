"""Questions about pictures: conversations and their answers."""
