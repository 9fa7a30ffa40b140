/* Slabs: the memory of receive calls, lent by reference count.
 *
 * A slab is slots for payloads and the headers that tell recvmmsg of them. While somebody can see
 * its payloads a *lease* holds it: rows do, and so does every memoryview, since the lease is what
 * exports the memory. When the last of them is gone the lease's dealloc puts the slab back, under
 * the GIL. That is the whole rule. The lease is not tracked by the garbage collector, so no
 * finalizer of a dead cycle can see memory that was put back.
 *
 * A batch of little holds little: what a call brought in `copied_up_to` bytes or less is copied to
 * memory of its own size, and the slab goes back at once.
 */
#include "_rows.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* A slot's distance to the next is no power of two: 64 KiB apart, the first bytes of all slots would
 * fall into the same few sets of the processor's cache. */
enum { SLOT_SKEW = 1088 };

struct slab {
    struct slab *next;
    char *payload;
    size_t bytes;
    struct mmsghdr *headers;
    struct iovec *iovecs;
    struct row *rows;
    char *names, *controls;
    int slots, used, lasting;
};

struct free_list { /* the slabs of one number of slots */
    struct free_list *next;
    struct slab *idle;
    int slots, in_use, idle_count;
};

typedef struct {
    PyObject_HEAD
    State *state;
    struct free_list *free_lists;
    size_t slot_size;
    long capacity, in_use, most_in_use;
    long long reused, allocated, beyond;
} Pool;

typedef struct {
    PyObject_HEAD
    Pool *pool;
    struct free_list *list;
    struct slab *slab;
    Py_ssize_t visible; /* bytes that are exported */
    char writable;
} Lease;

static void slab_free(struct slab *slab) {
    if (slab->payload && munmap(slab->payload, slab->bytes) != 0)
        Py_FatalError("munmap of a slab");
    free(slab->headers);
    free(slab);
}

static struct slab *slab_new(size_t slot_size, int slots, int lasting) {
    struct slab *slab = calloc(1, sizeof *slab);
    if (!slab)
        return NULL;
    size_t n = (size_t)slots, stride = n == 1 ? slot_size : (slot_size + 63) / 64 * 64 + SLOT_SKEW;
    slab->slots = slots;
    slab->lasting = lasting;
    slab->bytes = stride * n;
    /* One block: headers, iovecs, rows, names, controls; each begins aligned. */
    size_t each = sizeof(struct mmsghdr) + sizeof(struct iovec) + sizeof(struct row);
    char *block = calloc(n, each + NAME_SIZE + CONTROL_SIZE);
    slab->headers = (struct mmsghdr *)block;
    char *payload = mmap(NULL, slab->bytes, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (payload != MAP_FAILED)
        slab->payload = payload;
    if (!block || !slab->payload) {
        slab_free(slab);
        return NULL;
    }
    slab->iovecs = (struct iovec *)(block + n * sizeof(struct mmsghdr));
    slab->rows = (struct row *)(slab->iovecs + n);
    slab->names = (char *)(slab->rows + n);
    slab->controls = slab->names + n * NAME_SIZE;
    for (size_t i = 0; i < n; i++) {
        struct msghdr *header = &slab->headers[i].msg_hdr;
        slab->iovecs[i].iov_base = slab->payload + i * stride;
        slab->iovecs[i].iov_len = slot_size;
        header->msg_iov = &slab->iovecs[i];
        header->msg_iovlen = 1;
        header->msg_name = slab->names + i * NAME_SIZE;
        header->msg_control = slab->controls + i * CONTROL_SIZE;
    }
    slab->used = slots;
    return slab;
}

/* Put back what the kernel wrote over the headers that the last call used. */
static void slab_rearm(struct slab *slab) {
    for (int i = 0; i < slab->used; i++) {
        struct msghdr *header = &slab->headers[i].msg_hdr;
        header->msg_namelen = NAME_SIZE;
        header->msg_controllen = CONTROL_SIZE;
        header->msg_flags = 0;
    }
    slab->used = 0;
}

static struct free_list *free_list_of(Pool *pool, int slots) {
    struct free_list *list = pool->free_lists;
    while (list && list->slots != slots)
        list = list->next;
    if (!list && (list = calloc(1, sizeof *list))) {
        list->slots = slots;
        list->next = pool->free_lists;
        pool->free_lists = list;
    }
    return list;
}

/* A slab with `slots` slots. Beyond the capacity, where it serves for one call, only as many as this
 * call is `offered`: to lay out all of them takes ten times as long as the call. */
static struct slab *pool_take(Pool *pool, struct free_list *list, int offered) {
    struct slab *slab = list->idle;
    if (slab) { /* last in, first out: what was used last is still in the processor's cache */
        list->idle = slab->next;
        list->idle_count--;
        pool->reused++;
    } else {
        int lasting = list->in_use < pool->capacity;
        slab = slab_new(pool->slot_size, lasting ? list->slots : offered, lasting);
        if (!slab)
            return NULL;
        pool->allocated++;
        pool->beyond += !lasting;
    }
    list->in_use++;
    if (++pool->in_use > pool->most_in_use)
        pool->most_in_use = pool->in_use;
    return slab;
}

static void pool_put(Pool *pool, struct free_list *list, struct slab *slab) {
    list->in_use--;
    pool->in_use--;
    if (slab->lasting && list->in_use + list->idle_count < pool->capacity) {
        slab->next = list->idle;
        list->idle = slab;
        list->idle_count++;
    } else {
        slab_free(slab);
    }
}

/* -- leases */

static Lease *lease_new(Pool *pool, int slots, int offered) {
    struct free_list *list = free_list_of(pool, slots);
    Lease *lease = list ? PyObject_New(Lease, pool->state->lease_type) : NULL;
    if (!lease)
        return (Lease *)(list ? NULL : PyErr_NoMemory());
    lease->slab = NULL;
    lease->list = list;
    lease->writable = 0;
    lease->pool = pool;
    Py_INCREF(OBJECT(pool));
    lease->slab = pool_take(pool, list, offered);
    if (!lease->slab) {
        Py_DECREF(OBJECT(lease));
        return (Lease *)PyErr_NoMemory();
    }
    lease->visible = (Py_ssize_t)lease->slab->bytes;
    return lease;
}

static void lease_dealloc(Lease *lease) {
    PyTypeObject *type = Py_TYPE(OBJECT(lease));
    if (lease->slab)
        pool_put(lease->pool, lease->list, lease->slab);
    Py_DECREF(OBJECT(lease->pool));
    PyObject_Free(lease);
    Py_DECREF(type);
}

static int lease_export(Lease *lease, Py_buffer *view, int flags) {
    return PyBuffer_FillInfo(view, (PyObject *)lease, lease->slab->payload, lease->visible,
                             !lease->writable, flags);
}

/* A part of the leased memory, as a memoryview that holds the lease. */
PyObject *lease_memory(PyObject *object, const char *base, Py_ssize_t length) {
    Lease *lease = (Lease *)object;
    Py_ssize_t start = base - lease->slab->payload;
    PyObject *whole = PyMemoryView_FromObject(object);
    PyObject *part = whole ? PySequence_GetSlice(whole, start, start + length) : NULL;
    Py_XDECREF(whole);
    return part;
}

static PyType_Slot lease_slots[] = {
    {Py_tp_dealloc, lease_dealloc},
    {Py_bf_getbuffer, lease_export},
    {Py_tp_doc, "The memory of one slab, for as long as somebody sees it."},
    {0, NULL},
};
PyType_Spec lease_spec = {
    .name = "snaptun_trio._kernel._rows.Lease",
    .basicsize = sizeof(Lease),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = lease_slots,
};

/* -- receiving */

/* What the kernel wrote beside a payload, as a row. */
static void read_row(struct slab *slab, int index, size_t slot_size, char *plain, char *cut) {
    struct mmsghdr *message = &slab->headers[index];
    struct msghdr *header = &message->msg_hdr;
    struct row *row = &slab->rows[index];
    size_t control = header->msg_controllen < CONTROL_SIZE ? header->msg_controllen : CONTROL_SIZE;
    memset(row, 0, sizeof *row);
    row->base = slab->iovecs[index].iov_base;
    row->told = message->msg_len;
    row->length = row->size = message->msg_len < slot_size ? message->msg_len : (uint32_t)slot_size;
    row->flags = (uint16_t)(header->msg_flags & (MSG_TRUNC | MSG_CTRUNC));
    *cut |= row->flags != 0 || row->told != row->length;
    if (header->msg_namelen) {
        row->name = slab->names + (size_t)index * NAME_SIZE;
        row->name_length = header->msg_namelen < NAME_SIZE ? (uint16_t)header->msg_namelen : NAME_SIZE;
    }
    if (!control)
        return;
    const char *controls = slab->controls + (size_t)index * CONTROL_SIZE;
    int tells_more = row->flags != 0 || row->told != row->length; /* read once more, in Python */
    struct cmsghdr found;
    const char *said;
    for (size_t at = 0; (said = next_control(controls, control, &at, &found));) {
        int value;
        if (found.cmsg_level == SOL_UDP && found.cmsg_type == UDP_GRO) {
            if (found.cmsg_len >= CMSG_LEN(sizeof value)) {
                memcpy(&value, said + CMSG_LEN(0), sizeof value);
                if (value > 0) /* zero would split into datagrams without end */
                    row->size = (uint32_t)value < row->length ? (uint32_t)value : row->length;
            }
        } else {
            *plain = 0;
            tells_more = 1;
        }
    }
    /* The segment size is the row's now. Left in, it would be sent when the row is forwarded, and
     * the kernel refuses it there. */
    if (tells_more) {
        row->control = controls;
        row->control_length = (uint16_t)control;
    }
}

/* receive(fd, offered, slots) -> Rows, or None where nothing is queued.
 *
 * All that is needed is allocated before the call: what the kernel has handed over must not be lost
 * to a lack of memory. */
static PyObject *pool_receive(Pool *pool, PyObject *const *args, Py_ssize_t count) {
    if (count != 3)
        return PyErr_Format(PyExc_TypeError, "receive takes 3 arguments, not %zd", count);
    long fd = PyLong_AsLong(args[0]), offered = PyLong_AsLong(args[1]);
    long slots = PyLong_AsLong(args[2]);
    if (PyErr_Occurred())
        return NULL;
    if (slots < 1 || slots > MAX_MESSAGES || offered < 1 || offered > slots)
        return PyErr_Format(PyExc_ValueError, "%ld of %ld slots", offered, slots);
    Lease *lease = lease_new(pool, (int)slots, (int)offered);
    Rows *rows = lease ? rows_new(pool->state) : NULL;
    if (!rows) {
        Py_XDECREF(OBJECT(lease));
        return NULL;
    }
    rows->owner = (PyObject *)lease;
    struct slab *slab = lease->slab;
    slab_rearm(slab);
    int got, error;
    Py_BEGIN_ALLOW_THREADS
    do /* MSG_TRUNC makes msg_len the true length where a buffer was shorter (recvmsg(2)) */
        got = pool->state->recvmmsg((int)fd, slab->headers, (unsigned int)offered,
                                    MSG_DONTWAIT | MSG_TRUNC, NULL);
    while (got < 0 && errno == EINTR);
    error = errno;
    Py_END_ALLOW_THREADS
    if (got <= 0) {
        Py_DECREF(OBJECT(rows));
        if (got == 0 || error == EAGAIN || error == EWOULDBLOCK)
            Py_RETURN_NONE;
        errno = error;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    slab->used = got;
    rows->rows = slab->rows;
    rows->count = got;
    for (int i = 0; i < got; i++)
        read_row(slab, i, pool->slot_size, &rows->plain, &rows->cut);
    rows_sum(rows);
    if (rows->nbytes <= pool->state->copied_up_to)
        rows_copy(rows); /* without memory for it they stay in the slab */
    return (PyObject *)rows;
}

/* receive_each(fds, names, controls) -> Rows, with `served` and `error`.
 *
 * Lists of the same length: sockets, and for each the raw name of whom all that comes from it is
 * for, and the control messages that it is to be sent with, or None. One call for each socket, of a
 * fair share of the slots, up to the first that meets an error. What comes in is to be sent on at
 * once, so little of it is not copied either. */
static PyObject *pool_receive_each(Pool *pool, PyObject *const *args, Py_ssize_t count) {
    enum { SLOTS = 256, MOST = 64 };
    int fds[SLOTS], sources[SLOTS], used = 0;
    struct row heads[SLOTS];
    if (count != 3 || !PyList_Check(args[0]) || !PyList_Check(args[1]) || !PyList_Check(args[2]))
        return PyErr_Format(PyExc_TypeError, "receive_each takes three lists");
    Py_ssize_t sockets = PyList_Size(args[0]);
    if (PyList_Size(args[1]) != sockets || PyList_Size(args[2]) != sockets)
        return PyErr_Format(PyExc_ValueError, "lists of one length are needed");
    int asked = sockets < SLOTS ? (int)sockets : SLOTS;
    PyObject *names = PyList_GetSlice(args[1], 0, asked);
    PyObject *controls = PyList_GetSlice(args[2], 0, asked);
    PyObject *extra = names && controls ? PyTuple_Pack(2, names, controls) : NULL;
    Py_XDECREF(names);
    Py_XDECREF(controls);
    for (int i = 0; extra && i < asked; i++) {
        PyObject *number = PyList_GetItem(args[0], i); /* NULL where one before it took it out */
        fds[i] = number ? (int)PyLong_AsLong(number) : -1;
        if (PyErr_Occurred() ||
            row_bytes(PyList_GetItem(names, i), &heads[i].name, &heads[i].name_length,
                      NAME_SIZE) < 0 ||
            row_bytes(PyList_GetItem(controls, i), &heads[i].control, &heads[i].control_length,
                      CONTROL_SAID) < 0)
            Py_CLEAR(extra);
    }
    Lease *lease = extra ? lease_new(pool, SLOTS, SLOTS) : NULL;
    Rows *rows = lease ? rows_new(pool->state) : NULL;
    if (!rows) {
        Py_XDECREF(extra);
        Py_XDECREF(OBJECT(lease));
        return NULL;
    }
    rows->owner = (PyObject *)lease;
    rows->extra = extra;
    rows->says = 1;
    struct slab *slab = lease->slab;
    slab_rearm(slab);
    Py_BEGIN_ALLOW_THREADS
    while (rows->served < asked && used < slab->slots && !rows->error) {
        int share = (slab->slots - used) / (asked - rows->served), got;
        share = share < 1 ? 1 : share > MOST ? MOST : share;
        do
            got = pool->state->recvmmsg(fds[rows->served], slab->headers + used,
                                        (unsigned int)share, MSG_DONTWAIT | MSG_TRUNC, NULL);
        while (got < 0 && errno == EINTR);
        if (got < 0 && errno != EAGAIN && errno != EWOULDBLOCK)
            rows->error = errno;
        for (int i = 0; i < got; i++)
            sources[used++] = rows->served;
        rows->served++;
    }
    Py_END_ALLOW_THREADS
    slab->used = used;
    rows->rows = slab->rows;
    rows->count = used;
    for (int i = 0; i < used; i++) {
        struct row *row = &slab->rows[i], *head = &heads[sources[i]];
        char plain; /* what the kernel says is not what is said to it */
        read_row(slab, i, pool->slot_size, &plain, &rows->cut);
        row->name = head->name;
        row->name_length = head->name_length;
        row->control = head->control;
        row->control_length = head->control_length;
    }
    rows_sum(rows);
    return (PyObject *)rows;
}

/* -- the pool */

static PyObject *pool_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    Py_ssize_t slot_size;
    long capacity;
    if (kwargs && PyDict_Size(kwargs))
        return PyErr_Format(PyExc_TypeError, "no keyword arguments");
    if (!PyArg_ParseTuple(args, "nl", &slot_size, &capacity))
        return NULL;
    if (slot_size < 1 || slot_size > 1 << 16 || capacity < 1)
        return PyErr_Format(PyExc_ValueError, "slots of %zd bytes", slot_size);
    State *state = PyType_GetModuleState(type);
    Pool *pool = state ? PyObject_New(Pool, type) : NULL;
    if (!pool)
        return NULL;
    memset((char *)pool + offsetof(Pool, state), 0, sizeof *pool - offsetof(Pool, state));
    pool->state = state;
    pool->slot_size = (size_t)slot_size;
    pool->capacity = capacity;
    return (PyObject *)pool;
}

static void pool_dealloc(Pool *pool) {
    PyTypeObject *type = Py_TYPE(OBJECT(pool));
    for (struct free_list *list = pool->free_lists, *next; list; list = next) {
        next = list->next;
        for (struct slab *slab = list->idle, *after; slab; slab = after) {
            after = slab->next;
            slab_free(slab);
        }
        free(list);
    }
    PyObject_Free(pool);
    Py_DECREF(type);
}

static PyObject *pool_get(Pool *pool, PyObject *Py_UNUSED(ignored)) {
    Lease *lease = lease_new(pool, 1, 1);
    if (!lease)
        return NULL;
    lease->writable = 1;
    lease->visible = (Py_ssize_t)pool->slot_size;
    PyObject *view = PyMemoryView_FromObject((PyObject *)lease);
    Py_DECREF(OBJECT(lease));
    return view;
}

static PyObject *pool_statistics(Pool *pool, PyObject *Py_UNUSED(ignored)) {
    long idle = 0;
    for (struct free_list *list = pool->free_lists; list; list = list->next)
        idle += list->idle_count;
    return Py_BuildValue("lllLLL", pool->in_use, idle, pool->most_in_use, pool->reused,
                         pool->allocated, pool->beyond);
}

static PyMethodDef pool_methods[] = {
    {"receive", (PyCFunction)(void (*)(void))pool_receive, METH_FASTCALL,
     "receive(fd, offered, slots) -> Rows or None\n\nOne recvmmsg; None where nothing is queued."},
    {"receive_each", (PyCFunction)(void (*)(void))pool_receive_each, METH_FASTCALL,
     "receive_each(fds, names, controls) -> Rows\n\nOne recvmmsg for each socket."},
    {"get", (PyCFunction)pool_get, METH_NOARGS, "One writable buffer of a slot's size."},
    {"statistics", (PyCFunction)pool_statistics, METH_NOARGS,
     "(in use, idle, most in use, reused, allocated, allocated beyond the capacity)"},
    {NULL, NULL, 0, NULL},
};
static PyType_Slot pool_slots[] = {
    {Py_tp_new, pool_new},         {Py_tp_dealloc, pool_dealloc},
    {Py_tp_methods, pool_methods}, {Py_tp_doc, "Pool(slot_size, capacity): lends slabs."},
    {0, NULL},
};
PyType_Spec pool_spec = {
    .name = "snaptun_trio._kernel._rows.Pool",
    .basicsize = sizeof(Pool),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = pool_slots,
};
