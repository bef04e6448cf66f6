"""SIP calls over the Realtime Calls API."""
