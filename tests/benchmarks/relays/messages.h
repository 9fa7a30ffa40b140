/*
 * Many messages a call: their memory, and the control messages of trains and of addresses.
 *
 * What load.c receives and sends with. It knows nothing of what the messages say.
 */
#ifndef MESSAGES_H
#define MESSAGES_H

#include <errno.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#endif
#ifndef UDP_GRO
#define UDP_GRO 104
#endif
#ifndef SOL_UDP
#define SOL_UDP 17
#endif

enum {
    SLOTS = 64,                  /* messages a call */
    SLOT_SIZE = 65536 + 17 * 64, /* no power of two, or all first bytes would share cache lines */
};

union control {
    char bytes[CMSG_SPACE(sizeof(int)) + CMSG_SPACE(sizeof(struct in_pktinfo))];
    struct cmsghdr align;
};

struct messages {
    struct mmsghdr of[SLOTS];
    struct iovec iov[SLOTS];
    union control control[SLOTS];
    struct sockaddr_in names[SLOTS];
    char *memory;
};

static int messages_open(struct messages *m, size_t nbytes)
{
    m->memory = malloc(SLOTS * nbytes);
    if (!m->memory)
        return -1;
    memset(m->memory, 'x', SLOTS * nbytes);
    for (int i = 0; i < SLOTS; i++) {
        m->iov[i] = (struct iovec){m->memory + i * nbytes, nbytes};
        m->of[i].msg_hdr.msg_iov = &m->iov[i];
        m->of[i].msg_hdr.msg_iovlen = 1;
        m->of[i].msg_hdr.msg_name = &m->names[i];
        m->of[i].msg_hdr.msg_namelen = sizeof m->names[i];
        m->of[i].msg_hdr.msg_control = &m->control[i];
    }
    return 0;
}

/* Send so many messages; one that the kernel refuses is left out, and is missed in the counts. */
static void send_all(int fd, struct mmsghdr *messages, uint32_t count)
{
    for (uint32_t at = 0; at < count;) {
        int sent = sendmmsg(fd, messages + at, count - at, 0);
        if (sent < 0 && errno == EINTR)
            continue;
        at += sent > 0 ? (uint32_t)sent : 1;
    }
}

static struct cmsghdr *put(struct msghdr *h, struct cmsghdr *c, int level, int type,
                           const void *value, size_t nbytes)
{
    c->cmsg_level = level;
    c->cmsg_type = type;
    c->cmsg_len = CMSG_LEN(nbytes);
    memcpy(CMSG_DATA(c), value, nbytes);
    h->msg_controllen += CMSG_SPACE(nbytes);
    return (struct cmsghdr *)((char *)c + CMSG_SPACE(nbytes));
}

static int receive(int fd, struct messages *m, size_t nbytes)
{
    for (int i = 0; i < SLOTS; i++) {
        m->iov[i].iov_len = nbytes;
        m->of[i].msg_hdr.msg_controllen = sizeof m->control[i];
    }
    return recvmmsg(fd, m->of, SLOTS, MSG_DONTWAIT | MSG_TRUNC, NULL);
}

/* What came with a message: the size of its datagrams, and where it was sent to. */
static uint32_t look(struct mmsghdr *message, uint32_t *address)
{
    uint32_t size = message->msg_len;
    struct msghdr *h = &message->msg_hdr;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(h); c; c = CMSG_NXTHDR(h, c)) {
        if (c->cmsg_level == SOL_UDP && c->cmsg_type == UDP_GRO) {
            int given;
            memcpy(&given, CMSG_DATA(c), sizeof given);
            size = (uint32_t)given < size ? (uint32_t)given : size;
        } else if (c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_PKTINFO) {
            struct in_pktinfo info;
            memcpy(&info, CMSG_DATA(c), sizeof info);
            *address = ntohl(info.ipi_addr.s_addr);
        }
    }
    return size;
}

#endif
