"""The chat API: from a request body to an answer with regions, whole or streamed.

It does not know workers or controllers.
"""
