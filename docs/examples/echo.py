import trio

from snaptun_trio import open_batch_pump


async def main() -> None:
    sock = trio.socket.socket(type=trio.socket.SOCK_DGRAM)
    await sock.bind(("127.0.0.1", 0))
    print("echoing on {} port {}".format(*sock.getsockname()), flush=True)
    async with open_batch_pump(sock) as pump:
        async for batch in pump.incoming:  # up to hundreds of datagrams at a time
            await pump.outgoing.send(batch)  # each goes back to where it came from


trio.run(main)
