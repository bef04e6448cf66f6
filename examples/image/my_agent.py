"""An agent with its own package: it finds a name by its sound.

A caller says a name and the model writes it as it sounds, so "Stevenson" may arrive as
"Stephenson". The tool compares names by their sound. It uses the package `jellyfish`,
which requirements.txt beside this file names and the Dockerfile installs.
"""

import jellyfish
from agents import function_tool
from agents.realtime import RealtimeAgent

CUSTOMERS = {"Catherine Miller": 1042, "Philip Stevenson": 2217, "Ana Souza": 3090}


def sound(name: str) -> str:
    return " ".join(jellyfish.metaphone(word) for word in name.split())


@function_tool
def find_customer(name: str) -> str:
    """Find the number of a customer by the name that the caller says."""
    found = min(
        CUSTOMERS,
        key=lambda each: jellyfish.levenshtein_distance(sound(each), sound(name)),
    )
    return f"{found}, customer number {CUSTOMERS[found]}: ask whether this is right"


agent: RealtimeAgent[None] = RealtimeAgent(
    name="customers",
    instructions=(
        "You are on the phone: one or two short sentences. Ask for the caller's name, "
        "look it up, and let the caller confirm the name that was found."
    ),
    tools=[find_customer],
)
