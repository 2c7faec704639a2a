"""The protocol of OpenAI's API over a drawer: routes, their texts, and what guards them."""
