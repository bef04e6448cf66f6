"""The model side, on openai-agents: the user's agent, its session, the wire to it."""
