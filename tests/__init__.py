# The tests are a package, so that they can share their helpers: `ends` (sockets and what moves on
# them), `scripted` (a kernel that does as it is told) and `recorder` (what the real one is handed).
