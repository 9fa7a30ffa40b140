# The kernel's structures and constants, each with the header it stands in.
#
# The numbers are the generic ones of x86, ARM and RISC-V.
# Python's socket module has a few of them, but not on every version and build, and a constant that
# is missing there must not switch an offload off in silence. Nothing here makes a system call.

from __future__ import annotations

import struct

# include/uapi/linux/socket.h, include/linux/socket.h
SOL_SOCKET = 1
SOL_IP = 0
SOL_IPV6 = 41
SOL_UDP = 17
MSG_CTRUNC = 0x08
MSG_TRUNC = 0x20
MSG_ERRQUEUE = 0x2000

# include/uapi/asm-generic/socket.h
SO_TIMESTAMPNS = 35 if struct.calcsize("@P") == 8 else 64  # _OLD is 64 bit there, _NEW
SO_MEMINFO = 55

# include/uapi/linux/sock_diag.h: where SO_MEMINFO keeps the drop counter, and how many words it has
SK_MEMINFO_DROPS = 8
SK_MEMINFO_VARS = 9

# include/uapi/linux/udp.h
UDP_SEGMENT = 103
UDP_GRO = 104

# include/uapi/linux/in.h
IP_TOS = 1
IP_PKTINFO = 8
IP_MTU_DISCOVER = 10
IP_RECVERR = 11
IP_RECVTOS = 13
IP_MTU = 14
IP_PMTUDISC_DONT = 0
IP_PMTUDISC_PROBE = 3
IP_PMTUDISC_OMIT = 5

# include/uapi/linux/in6.h
IPV6_MTU_DISCOVER = 23
IPV6_MTU = 24
IPV6_RECVERR = 25
IPV6_RECVPKTINFO = 49
IPV6_PKTINFO = 50
IPV6_RECVTCLASS = 66
IPV6_TCLASS = 67

# sendmmsg and recvmmsg take at most UIO_MAXIOV messages, and cut a longer list in silence
# (include/uapi/linux/uio.h, net/socket.c).
MAX_BATCH_SIZE = 1024

# struct cmsghdr of include/linux/socket.h: length, level, type; the data follows, aligned.
CMSG = struct.Struct("@Nii")
WORD = struct.calcsize("@N")  # the alignment of control messages
CMSG_HEADER = CMSG.size


def cmsg_align(length: int) -> int:
    """CMSG_ALIGN of include/linux/socket.h, in bytes."""
    return (length + WORD - 1) & ~(WORD - 1)


# All control messages a socket can be made to deliver with a datagram fit into 200 bytes (both IP
# families' options on a dual-stack socket). UDP_GRO stands behind the SOL_SOCKET ones: with too
# little room it is cut off, and the datagrams of a train look like one.
CONTROL_SIZE = 256
