from typing import TypedDict
from durable_streams import stream

class Event(TypedDict):
    id: str
    type: str
    data: dict

with stream("https://...") as res:
    for event in res.iter_json():
        event: Event  # Type hint for IDE
        print(event["id"])
