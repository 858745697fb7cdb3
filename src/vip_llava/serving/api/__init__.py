"""The chat API: from a request's body to an answer with regions, whole or streamed; `app` makes it.

Knows no workers and no controller.
"""
