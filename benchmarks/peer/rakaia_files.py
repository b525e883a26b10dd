"""The application that uvicorn serves for rakaia with files: its durable store in the folder that RAKAIA_DATA names."""

import os

from rakaia import JsonlStreamStore, create_app

app = create_app(store=JsonlStreamStore(os.environ["RAKAIA_DATA"]))
