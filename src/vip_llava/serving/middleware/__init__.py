"""What every server of this project shares: access checks, limits, errors, metrics, the socket.

It does not know models, workers or the format of any request.
"""
