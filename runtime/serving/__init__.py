"""Pictures and answers over a network: the topmost wing, an extra of its own; nothing below knows of it.

orders (what is asked for, and what comes back), drawer (does it, without HTTP), http/ and openai_api (the protocol),
server and command (`rf-export serve`). Importing this package imports nothing.
"""
