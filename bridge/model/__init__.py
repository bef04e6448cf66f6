"""The Realtime model: its connection, the SDK's session, settings, transcoding, MCP."""
