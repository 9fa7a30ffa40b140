# The tunnel of docs/examples beside wireguard-go.
