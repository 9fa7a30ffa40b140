/* Rows: what the compiled part is about.
 *
 * A row is one message: where its bytes are, how many, how long each datagram of it is, the raw name
 * of its peer, and its control messages. Rows come from a receive call (pool.c), or from what a
 * program wants to send (rows.c), are told apart by their peers (peers.c), and leave by sendmmsg
 * (send.c). Python sees them as the
 * columns of a batch. Nothing here decides what an errno means, when to wait, or what a program may
 * do; every length that the kernel reports is bounded before it is used.
 */
#ifndef SNAPTUN_TRIO_ROWS_H
#define SNAPTUN_TRIO_ROWS_H

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* recvmmsg, sendmmsg */
#endif
#include <Python.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <structmember.h>
#include <sys/socket.h>

#ifndef SOL_UDP
#define SOL_UDP 17 /* include/linux/socket.h */
#endif
#define UDP_SEGMENT 103 /* include/uapi/linux/udp.h */
#define UDP_GRO 104

enum {
    NAME_SIZE = 32,      /* sockaddr_in6 has 28 bytes */
    CONTROL_SIZE = 256,  /* all that a socket can be made to report fits into 200 */
    CONTROL_OUT = 128,   /* segment size, ECN and packet information take 88 */
    MAX_MESSAGES = 1024, /* UIO_MAXIOV: the kernel cuts a longer list in silence */
    MAX_SEGMENTS = 64,   /* what every kernel takes, see _coalesce.py */
    MAX_PIECES = 4096,   /* iovecs of one send call */
    CONTROL_SAID = CONTROL_OUT - 24, /* what is left of it beside the segment size */
};

struct row {
    const char *base;
    const char *name;    /* NULL: the connected peer */
    const char *control; /* whole control messages; NULL: none */
    uint32_t length;     /* bytes that are there */
    uint32_t told;       /* bytes that the message had; more than `length` where it was cut */
    uint32_t size;       /* bytes of each datagram, the last may be shorter; 0 only where length is */
    uint32_t segments;   /* datagrams */
    int index;           /* its place among the addresses and payloads that a program gave */
    uint16_t name_length, control_length;
    uint16_t flags; /* msg_flags, of a received row */
};

/* The control message at a place of several, which moves behind it; NULL where there is no other. A
 * length that lies, less than a header or more than there is, ends the walk. */
static inline const char *next_control(const char *controls, size_t length, size_t *place,
                                       struct cmsghdr *found) {
    size_t at = *place;
    if (length < sizeof *found || at > length - sizeof *found)
        return NULL;
    memcpy(found, controls + at, sizeof *found);
    if (found->cmsg_len < sizeof *found || found->cmsg_len > length - at)
        return NULL;
    *place = at + CMSG_ALIGN(found->cmsg_len);
    return controls + at;
}

#define OBJECT(o) ((PyObject *)(o))

/* Py_SETREF and Py_XSETREF are not in the limited API. */
static inline void set_reference(PyObject **place, PyObject *object) {
    PyObject *old = *place;
    *place = object;
    Py_XDECREF(old);
}

struct tx;

/* What the module keeps instead of statics: one of it for each interpreter. */
typedef struct {
    PyTypeObject *pool_type, *lease_type, *rows_type, *outgoing_type;
    PyObject *decode;      /* (raw name) -> address */
    PyObject *make_trains; /* (rows, first, stop) -> tuple of trains */
    PyObject *way_back;    /* (raw packet information) -> how an answer leaves */
    struct address_cache *addresses;
    uint32_t seed; /* of the hashes of names */
    struct tx *idle_tx; /* of the call before, for the next one */
    int copied_up_to; /* a batch of so many bytes gets memory of its own, see pool.c */
    int (*recvmmsg)(int, struct mmsghdr *, unsigned int, int, struct timespec *);
    int (*sendmmsg)(int, struct mmsghdr *, unsigned int, int);
} State;

typedef struct Rows {
    PyObject_HEAD
    State *state;
    PyObject *owner;     /* a lease, the bytes, or the list of payloads */
    PyObject *addresses; /* of rows that a program made: a list; else NULL */
    PyObject *extra;     /* whatever else keeps the memory alive */
    Py_buffer *views;
    struct row *rows;
    void *memory; /* of its own, to be freed */
    int views_count, count;
    char plain; /* no row has control messages but the segment size */
    char cut;   /* a buffer was too small for one of them */
    char says;  /* control messages are to be sent, and not what the kernel said of what came in */
    int served, error; /* of `receive_each`: how many sockets it read; what the last one met, or 0 */
    int most_segments;
    long long datagrams, nbytes;
} Rows;

extern PyType_Spec pool_spec, lease_spec, rows_spec, outgoing_spec;

State *state_of(PyObject *module);

/* rows.c */
Rows *rows_new(State *state);
void rows_sum(Rows *rows);
PyObject *rows_of(PyObject *module, PyObject *const *args, Py_ssize_t count);
int rows_copy(Rows *rows);
int row_bytes(PyObject *object, const char **base, uint16_t *length, Py_ssize_t most);

/* peers.c */
PyObject *address_of(Rows *rows, int index);
int addresses_new(State *state);
void addresses_free(State *state);
int same_name(const struct row *a, const struct row *b);
Rows *rows_gathered(Rows *rows);
PyObject *rows_by_address(Rows *rows, PyObject *ignored);
PyObject *rows_one_way(Rows *rows, void *ignored);
PyObject *rows_way_back(Rows *rows, PyObject *ignored);

#ifdef SNAPTUN_TRIO_TEST_HOOKS
/* All that is not Python's is allocated through these, so that a test can count it, and can let it
 * fail: see `fail_allocation`. */
#include <stdlib.h>
#include <sys/mman.h>
int allocation_fails(void);
void *held(void *memory, int more);
#define malloc(size) held(allocation_fails() ? NULL : malloc(size), 1)
#define calloc(count, size) held(allocation_fails() ? NULL : calloc(count, size), 1)
#define mmap(...) held(allocation_fails() ? MAP_FAILED : mmap(__VA_ARGS__), 1)
#define free(memory) free(held(memory, -1))
#define munmap(memory, size) munmap(held(memory, -1), size)
#endif

/* pool.c */
PyObject *lease_memory(PyObject *lease, const char *base, Py_ssize_t length);

/* send.c */
PyObject *outgoing(PyObject *module, PyObject *const *args, Py_ssize_t count);
PyObject *send_each(PyObject *module, PyObject *const *args, Py_ssize_t count);

#endif
