"""The sentences that Twilio says if neither the settings nor the route have their own:
the apology, busy, waiting. English; `<Say language>` comes from the route."""

BUSY = "All our lines are busy at the moment. Please call again in a few minutes."
BUSY_CONNECTING = (
    "All our lines are busy at the moment. "
    "Please hold on, I am connecting you to somebody who can help."
)
HOLD = (
    "All our lines are busy at the moment. "
    "Please hold on, you are put through as soon as one is free."
)
MOMENT = "One moment, please."
PRESS_1 = "A caller is on the line for you. Press 1 to take the call."
SORRY = "I am sorry, something went wrong on our side. Please call again later."
SORRY_CONNECTING = (
    "I am sorry, something went wrong on our side. "
    "Please hold on, I am connecting you to somebody who can help."
)
