"""The HTTP server: webhooks, media WebSocket, who is let in."""
