/*
 * The floor: the least that a program on this kernel can pay for the work that is benchmarked.
 *
 * Only the system calls are made, with header arrays that are built once, and what must stand
 * between two of them. No datagram's payload is looked at or copied, nothing is scheduled, nothing
 * is checked twice. The file is compiled as a shared library, so that the floor runs in the
 * benchmark's own process, on the same sockets and by the same clock as what it is compared with.
 *
 * receive   recvmmsg with UDP_GRO into slots of 64 KiB.
 * send      sendmmsg of prepared messages; what GSO can carry together is one message already, so
 *           nothing but the system call is measured.
 * pump      recvmmsg, then sendmmsg from the very slots: neighbours and all other messages of the
 *           call that are for one target and fit together leave as one UDP_SEGMENT message.
 * echo_one  one datagram a turn, with poll: the shape of a program that waits for each.
 *
 * How many messages a call takes is the caller's choice: what suits the traffic best for the floor
 * itself, and always 64 for the C program that is shown beside it (see _floor_fixed.py).
 *
 * It knows nothing of Python and of how the figures are made. Every function returns the bytes it
 * moved, or -errno.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <poll.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
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
    SLOT_SIZE = 65536,
    MOST_SLOTS = 1024,     /* UIO_MAXIOV: the kernel takes no more messages a call */
    MOST_SEGMENTS = 64,    /* UDP_MAX_SEGMENTS of older kernels */
    MOST_BYTES = 65473,    /* above it loopback splits a train in software, see IPv6 */
    TARGETS = 2048,        /* the hash of the open trains by target: a power of two */
};

union control {
    char bytes[CMSG_SPACE(sizeof(int))];
    struct cmsghdr align;
};

/* A message that is being put together for one target. */
struct train {
    uint32_t bytes;
    uint16_t segment_size;
    uint16_t segments;
    uint16_t parts;
    uint16_t closed; /* a shorter datagram ended it */
};

struct floor {
    int slots;
    char *memory;
    struct mmsghdr in[MOST_SLOTS];
    struct iovec in_iov[MOST_SLOTS];
    union control in_control[MOST_SLOTS];
    struct sockaddr_in6 names[MOST_SLOTS];
    uint16_t segment_sizes[MOST_SLOTS];

    struct mmsghdr out[MOST_SLOTS];
    union control out_control[MOST_SLOTS];
    struct train trains[MOST_SLOTS];
    struct iovec *out_iov; /* MOST_SEGMENTS for each message */
    int16_t open_trains[TARGETS];
};

void floor_close(struct floor *f)
{
    if (!f)
        return;
    if (f->memory)
        munmap(f->memory, (size_t)f->slots * SLOT_SIZE);
    free(f->out_iov);
    free(f);
}

struct floor *floor_open(int slots)
{
    struct floor *f = calloc(1, sizeof *f);
    if (!f || slots < 1 || slots > MOST_SLOTS) {
        free(f);
        return NULL;
    }
    f->slots = slots;
    f->out_iov = calloc((size_t)MOST_SLOTS * MOST_SEGMENTS, sizeof *f->out_iov);
    f->memory = mmap(NULL, (size_t)slots * SLOT_SIZE, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (f->memory == MAP_FAILED)
        f->memory = NULL;
    if (!f->memory || !f->out_iov) {
        floor_close(f);
        return NULL;
    }
    for (int i = 0; i < slots; i++) {
        f->in_iov[i].iov_base = f->memory + (size_t)i * SLOT_SIZE;
        f->in_iov[i].iov_len = SLOT_SIZE;
        f->in[i].msg_hdr.msg_iov = &f->in_iov[i];
        f->in[i].msg_hdr.msg_iovlen = 1;
        f->in[i].msg_hdr.msg_name = &f->names[i];
        f->in[i].msg_hdr.msg_control = &f->in_control[i];
    }
    for (int i = 0; i < MOST_SLOTS; i++) {
        struct cmsghdr *c = &f->out_control[i].align;
        c->cmsg_level = SOL_UDP;
        c->cmsg_type = UDP_SEGMENT;
        c->cmsg_len = CMSG_LEN(sizeof(uint16_t));
        f->out[i].msg_hdr.msg_iov = &f->out_iov[(size_t)i * MOST_SEGMENTS];
    }
    return f;
}

static int receive_call(struct floor *f, int fd)
{
    for (int i = 0; i < f->slots; i++) {
        f->in[i].msg_hdr.msg_namelen = sizeof f->names[i];
        f->in[i].msg_hdr.msg_controllen = sizeof f->in_control[i];
    }
    int got = recvmmsg(fd, f->in, (unsigned)f->slots, MSG_DONTWAIT, NULL);
    return got < 0 ? -errno : got;
}

/* Receive until `bytes` have come; the socket's queue holds them already. */
long floor_receive(struct floor *f, int fd, long bytes)
{
    long done = 0;
    while (done < bytes) {
        int got = receive_call(f, fd);
        if (got < 0)
            return got;
        for (int i = 0; i < got; i++)
            done += f->in[i].msg_len;
    }
    return done;
}

/* Receive until nothing is queued. */
long floor_receive_all(struct floor *f, int fd)
{
    long done = 0, got;
    while ((got = receive_call(f, fd)) > 0)
        for (long i = 0; i < got; i++)
            done += f->in[i].msg_len;
    return got == -EAGAIN ? done : got;
}

static long send_all(int fd, struct mmsghdr *messages, int count)
{
    long done = 0;
    for (int first = 0; first < count;) {
        int sent = sendmmsg(fd, messages + first, (unsigned)(count - first), 0);
        if (sent < 0) {
            struct pollfd writable = {.fd = fd, .events = POLLOUT};
            if (errno != EAGAIN && errno != EINTR)
                return -errno;
            if (errno == EAGAIN)
                poll(&writable, 1, -1);
            continue;
        }
        for (int i = first; i < first + sent; i++)
            done += messages[i].msg_len;
        first += sent;
    }
    return done;
}

static uint16_t segment_size_of(struct mmsghdr *message)
{
    struct msghdr *h = &message->msg_hdr;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(h); c; c = CMSG_NXTHDR(h, c))
        if (c->cmsg_level == SOL_UDP && c->cmsg_type == UDP_GRO) {
            int size;
            memcpy(&size, CMSG_DATA(c), sizeof size);
            return (uint16_t)size;
        }
    return (uint16_t)message->msg_len;
}

/* Address and port are compared, so a call's messages are gathered by target like this:
   an open-addressing hash of the trains that can still grow. */
static int16_t *open_train(struct floor *f, const struct sockaddr_in6 *name, uint32_t name_length)
{
    const uint32_t *words = (const uint32_t *)name;
    uint32_t hash = 0;
    for (uint32_t i = 0; i < name_length / 4; i++)
        hash = (hash ^ words[i]) * 2654435761u;
    for (uint32_t at = hash >> 21;; at = (at + 1) % TARGETS) {
        int16_t *entry = &f->open_trains[at];
        if (*entry < 0)
            return entry;
        struct msghdr *other = &f->out[*entry].msg_hdr;
        if (other->msg_namelen == name_length && !memcmp(other->msg_name, name, name_length))
            return entry;
    }
}

/* Lay the received messages out as messages to send. Returns how many those are. */
static int gather(struct floor *f, int got, struct sockaddr *target, socklen_t target_length)
{
    int trains = 0;
    int16_t only = -1;
    if (!target)
        memset(f->open_trains, -1, sizeof f->open_trains);
    for (int i = 0; i < got; i++) {
        uint32_t length = f->in[i].msg_len;
        uint16_t size = f->segment_sizes[i];
        uint16_t segments = size ? (uint16_t)((length + size - 1) / size) : 1;
        uint32_t name_length = f->in[i].msg_hdr.msg_namelen;
        int16_t *entry = target ? &only : open_train(f, &f->names[i], name_length);
        struct train *t = *entry < 0 ? NULL : &f->trains[*entry];
        int fits = t && !t->closed && t->segments + segments <= MOST_SEGMENTS &&
                   t->bytes + length <= MOST_BYTES && length &&
                   (size == t->segment_size || (segments == 1 && size < t->segment_size));
        if (!fits) {
            *entry = (int16_t)trains;
            t = &f->trains[trains];
            *t = (struct train){.segment_size = size};
            struct msghdr *h = &f->out[trains].msg_hdr;
            h->msg_name = target ? (void *)target : (void *)&f->names[i];
            h->msg_namelen = target ? target_length : name_length;
            trains++;
        }
        struct iovec *part = &f->out_iov[(size_t)*entry * MOST_SEGMENTS + t->parts++];
        part->iov_base = f->in_iov[i].iov_base;
        part->iov_len = length;
        t->bytes += length;
        t->segments += segments;
        t->closed = !t->segment_size || length % t->segment_size != 0;
    }
    for (int i = 0; i < trains; i++) {
        struct msghdr *h = &f->out[i].msg_hdr;
        h->msg_iovlen = f->trains[i].parts;
        h->msg_control = f->trains[i].segments > 1 ? &f->out_control[i] : NULL;
        h->msg_controllen = f->trains[i].segments > 1 ? CMSG_SPACE(sizeof(uint16_t)) : 0;
        memcpy(CMSG_DATA(&f->out_control[i].align), &f->trains[i].segment_size, sizeof(uint16_t));
    }
    return trains;
}

/* Receive and send on, to `target` or, where that is NULL, back to where each came from. */
long floor_pump(struct floor *f, int in, int out, long bytes, struct sockaddr *target,
                socklen_t target_length)
{
    long done = 0;
    while (done < bytes) {
        int got = receive_call(f, in);
        if (got < 0)
            return got;
        for (int i = 0; i < got; i++)
            f->segment_sizes[i] = segment_size_of(&f->in[i]);
        long sent = send_all(out, f->out, gather(f, got, target, target_length));
        if (sent < 0)
            return sent;
        done += sent;
    }
    return done;
}

/* Prepare the sending of `count` trains as if they had just been received, one after the other in
   memory. Returns the number of messages they make, or -1 when there is no room for them. */
int floor_plan(struct floor *f, int count, const uint32_t *lengths, const uint16_t *segment_sizes,
               const char *names, socklen_t name_length)
{
    size_t at = 0;
    for (int i = 0; i < count; i++) {
        if (count > f->slots || at + lengths[i] > (size_t)f->slots * SLOT_SIZE)
            return -1;
        f->in_iov[i].iov_base = f->memory + at;
        memset(f->memory + at, 'x', lengths[i]); /* untouched memory would be one page of zeros */
        f->in[i].msg_len = lengths[i];
        f->segment_sizes[i] = segment_sizes[i];
        memcpy(&f->names[i], names + (size_t)i * name_length, name_length);
        f->in[i].msg_hdr.msg_namelen = name_length;
        at += lengths[i];
    }
    return gather(f, count, NULL, 0);
}

/* Send the `count` messages of a plan. */
long floor_send(struct floor *f, int fd, int count)
{
    return send_all(fd, f->out, count);
}

/* Wait for a datagram and send it back, `count` times. */
long floor_echo_one(struct floor *f, int fd, long count)
{
    long done = 0;
    for (long turn = 0; turn < count; turn++) {
        struct pollfd readable = {.fd = fd, .events = POLLIN};
        socklen_t name_length = sizeof f->names[0];
        struct sockaddr *name = (struct sockaddr *)&f->names[0];
        ssize_t length;
        while ((length = recvfrom(fd, f->memory, SLOT_SIZE, MSG_DONTWAIT, name, &name_length)) < 0) {
            if (errno != EAGAIN && errno != EINTR)
                return -errno;
            poll(&readable, 1, -1);
        }
        if (sendto(fd, f->memory, (size_t)length, 0, name, name_length) < 0)
            return -errno;
        done += length;
    }
    return done;
}
