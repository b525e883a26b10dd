from durable_streams import stream

def get_token():
    return "Bearer " + fetch_current_token()

with stream(
    "https://...",
    headers={
        "Authorization": get_token,  # Called per-request
        "X-Request-ID": lambda: str(uuid.uuid4()),
    },
) as res:
    for item in res.iter_json():
        print(item)
