"""The protocol, pure: no sockets, clocks, threads, files or HTTP library. Client and server run the same code."""
