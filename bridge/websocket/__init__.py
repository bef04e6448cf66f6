"""WebSockets without a queue or a task per message: the media stream of Twilio and the
connection to the model."""
