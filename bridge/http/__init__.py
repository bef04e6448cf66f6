"""The HTTP server: webhooks, media WebSocket, admission, control API."""
