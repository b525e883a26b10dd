from durable_streams import stream

with stream("https://streams.example.com/events", live=True) as res:
    for event in res.iter_json():
        print(f"Event: {event}")
        print(f"Offset: {res.offset}")

        # Save checkpoint
        db.save_offset(res.offset)
