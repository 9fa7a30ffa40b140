/* Sending: how rows become messages, and what became of them.
 *
 * This is the one place that decides what is one message. Neighbours for one peer that make a train
 * together leave as one, scattered over as many iovecs as it takes; a train over the kernel's limits
 * is split; without GSO each datagram is a message of its own. What is laid out stays so while the
 * kernel refuses messages: one is tried again, or skipped, without touching those behind it.
 */
#include "_rows.h"

#include <errno.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>

enum { /* _coalesce.py says where these come from */
    PAYLOAD_IPV4 = 65507,
    PAYLOAD_IPV6 = 65527,
    TRAIN_IPV4 = 65493,
    TRAIN_IPV6 = 65473,
};

struct place { /* where in the rows something ends */
    int row;
    uint32_t offset;
};

struct tx { /* what a call hands to the kernel */
    struct mmsghdr headers[MAX_MESSAGES];
    struct iovec iovecs[MAX_PIECES];
    struct {
        struct place end;
        uint32_t datagrams, nbytes;
    } messages[MAX_MESSAGES];
    union {
        struct cmsghdr aligned;
        char bytes[CONTROL_OUT];
    } controls[MAX_MESSAGES];
};

typedef struct {
    PyObject_HEAD
    State *state;
    Rows *rows;           /* in the order in which they leave */
    PyObject *name_owner; /* the raw name of whom all are for, None, or True: each row has its own */
    int family;
    struct tx *tx;   /* what is laid out from `begin` on, NULL for nothing */
    int count, done; /* messages in it; of them sent or skipped */
    int segments; /* how it was laid out */
    char single;
    /* The next message. */
    struct place begin, end;
    char segmented;
    int work; /* of the last call */
    /* What the kernel took so far. */
    long long messages, datagrams, nbytes;
} Outgoing;

static struct tx *tx_take(State *state) {
    struct tx *tx = state->idle_tx;
    state->idle_tx = NULL;
    return tx ? tx : malloc(sizeof *tx);
}

static void tx_put(State *state, struct tx *tx) {
    free(state->idle_tx);
    state->idle_tx = tx;
}

/* -- laying out */

/* Whether a message to this name leaves over IPv4: an IPv4 address, or one that is mapped. */
static int leaves_by_ipv4(const char *name, size_t length, int family) {
    static const char mapped[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, -1, -1}; /* RFC 4291 */
    sa_family_t of_name;
    if (length < sizeof(struct sockaddr_in))
        return family == AF_INET;
    memcpy(&of_name, name + offsetof(struct sockaddr, sa_family), sizeof of_name);
    return of_name == AF_INET ||
           (length >= sizeof(struct sockaddr_in6) &&
            memcmp(name + offsetof(struct sockaddr_in6, sin6_addr), mapped, sizeof mapped) == 0);
}

struct layout { /* what is the same for all messages of a transmission */
    const char *name;
    uint16_t name_length;
    int own_names, controls, family;
    uint32_t segments; /* the most of a message; 1 asks for no segmentation */
};

static int same_control(const struct row *a, const struct row *b) {
    return a->control_length == b->control_length &&
           (!a->control_length || memcmp(a->control, b->control, a->control_length) == 0);
}

/* Whether another row may follow in a message that begins with `first` and has so much in it. */
static int may_follow(const struct layout *how, const struct row *first, const struct row *last,
                      const struct row *next, uint32_t nbytes, uint32_t segments, uint32_t room) {
    return segments + next->segments <= how->segments && last->length &&
           last->length % first->size == 0 && next->length && nbytes + next->length <= room &&
           (next->size == first->size || (next->segments == 1 && next->length < first->size)) &&
           (!how->own_names || same_name(first, next)) &&
           (!how->controls || same_control(first, next));
}

/* Lay out one message from `place` on. Returns the iovecs that it takes. */
static int lay_out_one(struct tx *tx, int index, int iovecs, Rows *rows, const struct layout *how,
                       struct place *place) {
    struct row *row = &rows->rows[place->row];
    struct msghdr *header = &tx->headers[index].msg_hdr;
    const char *name = how->own_names ? row->name : how->name;
    uint16_t name_length = how->own_names ? row->name_length : how->name_length;
    int ipv4 = leaves_by_ipv4(name, name_length, how->family), used = 1;
    uint32_t room = ipv4 ? TRAIN_IPV4 : TRAIN_IPV6, whole = ipv4 ? PAYLOAD_IPV4 : PAYLOAD_IPV6;
    uint32_t left = row->length - place->offset, nbytes = left, segments = 1;
    struct iovec *iovec = &tx->iovecs[iovecs];
    *iovec = (struct iovec){(char *)row->base + place->offset, left};
    if (left > row->size) {
        uint32_t most = (row->length <= whole ? whole : room) / row->size;
        most = most < 1 ? 1 : most > how->segments ? how->segments : most;
        segments = (left - 1) / row->size + 1;
        if (segments > most) {
            segments = most;
            nbytes = most * row->size;
        }
        iovec->iov_len = nbytes;
    }
    place->offset += nbytes;
    if (place->offset >= row->length) {
        place->row++;
        place->offset = 0;
        /* Only what begins with its row is joined by others: a rest is the kernel's limits' doing. */
        const struct row *last = row;
        int joins = nbytes == row->length;
        while (joins && place->row < rows->count) {
            const struct row *next = &rows->rows[place->row];
            if (!may_follow(how, row, last, next, nbytes, segments, room))
                break;
            if ((char *)iovec->iov_base + iovec->iov_len == next->base)
                iovec->iov_len += next->length;
            else if (iovecs + used < MAX_PIECES) {
                *++iovec = (struct iovec){(char *)next->base, next->length};
                used++;
            } else
                break;
            nbytes += next->length;
            segments += next->segments;
            last = next;
            place->row++;
        }
    }
    memset(header, 0, sizeof *header);
    header->msg_name = (char *)name;
    header->msg_namelen = name_length;
    header->msg_iov = &tx->iovecs[iovecs];
    header->msg_iovlen = (size_t)used;
    size_t control = 0;
    char *controls = tx->controls[index].bytes;
    if (segments > 1) {
        struct cmsghdr request = {CMSG_LEN(sizeof(uint16_t)), SOL_UDP, UDP_SEGMENT};
        uint16_t size = (uint16_t)row->size; /* a u16: any other width is EINVAL */
        memset(controls, 0, CMSG_SPACE(sizeof size));
        memcpy(controls, &request, sizeof request);
        memcpy(controls + CMSG_LEN(0), &size, sizeof size);
        control = CMSG_SPACE(sizeof size);
    }
    if (how->controls && row->control_length && control + row->control_length <= CONTROL_OUT) {
        memcpy(controls + control, row->control, row->control_length);
        control += row->control_length;
    }
    header->msg_control = control ? controls : NULL;
    header->msg_controllen = control;
    tx->messages[index].end = *place;
    tx->messages[index].datagrams = segments;
    tx->messages[index].nbytes = nbytes;
    return used;
}

/* Lay out what is left, as much as one call takes. Returns -1 without memory. */
static int lay_out(Outgoing *sending) {
    Rows *rows = sending->rows;
    PyObject *name = sending->name_owner;
    struct layout how = {.own_names = name == Py_True,
                         .controls = rows->says,
                         .segments = sending->single ? 1 : (uint32_t)sending->segments,
                         .family = sending->family};
    if (PyBytes_Check(name)) {
        how.name = PyBytes_AsString(name);
        how.name_length = (uint16_t)PyBytes_Size(name);
    }
    if (!sending->tx && !(sending->tx = tx_take(sending->state)))
        return PyErr_NoMemory(), -1;
    struct place place = sending->begin;
    int most = sending->single ? 1 : MAX_MESSAGES, count = 0;
    for (int iovecs = 0; place.row < rows->count && count < most && iovecs < MAX_PIECES; count++)
        iovecs += lay_out_one(sending->tx, count, iovecs, rows, &how, &place);
    sending->count = count;
    sending->done = 0;
    return 0;
}

static void let_go(Outgoing *sending) {
    if (sending->tx)
        tx_put(sending->state, sending->tx);
    sending->tx = NULL;
    sending->count = sending->done = 0;
}

/* Nothing of it is sent yet. Steals the reference to the rows, also when it fails. */
static Outgoing *outgoing_new(State *state, Rows *rows, PyObject *name_owner, int family) {
    Outgoing *sending = rows ? PyObject_New(Outgoing, state->outgoing_type) : NULL;
    if (!sending) {
        Py_XDECREF(OBJECT(rows));
        return NULL;
    }
    memset((char *)sending + offsetof(Outgoing, state), 0,
           sizeof *sending - offsetof(Outgoing, state));
    sending->state = state;
    sending->rows = rows;
    sending->name_owner = Py_NewRef(name_owner);
    sending->family = family;
    return sending;
}

/* outgoing(rows, name, family) -> Outgoing.
 *
 * `name` is raw bytes for all rows, None for the connected peer, or True: each row its own. */
PyObject *outgoing(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    State *state = state_of(module);
    if (count != 3 || Py_TYPE(args[0]) != state->rows_type)
        return PyErr_Format(PyExc_TypeError, "outgoing takes rows, a name and a family");
    long family = PyLong_AsLong(args[2]);
    if (PyErr_Occurred())
        return NULL;
    if (args[1] != Py_True && args[1] != Py_None &&
        !(PyBytes_Check(args[1]) && PyBytes_Size(args[1]) <= NAME_SIZE))
        return PyErr_Format(PyExc_ValueError, "a name has at most %d bytes", NAME_SIZE);
    Rows *rows = args[1] == Py_True ? rows_gathered((Rows *)args[0]) : (Rows *)Py_NewRef(args[0]);
    return (PyObject *)outgoing_new(state, rows, args[1], (int)family);
}

/* -- sending */

/* Tell of the message that is next: the refused one, if any. */
static void show_next(Outgoing *sending) {
    if (sending->done < sending->count) {
        sending->end = sending->tx->messages[sending->done].end;
        sending->segmented = sending->tx->messages[sending->done].datagrams > 1;
    }
}

/* What a message counts for: one call of the kernel's, and each 16 KiB as much again. */
static int work_of(const struct tx *tx, int index) {
    return 1 + (int)(tx->messages[index].nbytes >> 14);
}

/* One call, of as many messages as the budget of work allows. Returns 0, the errno with which
 * nothing was sent, or -1 with an exception set. What is laid out stays so while messages are
 * refused one by one, and until then as long as the next call comes at once. */
static int transmit(Outgoing *sending, int fd, long budget, int segments, char single) {
    sending->work = 0;
    if (sending->done == sending->count || sending->segments != segments ||
        sending->single != single) {
        sending->segments = segments;
        sending->single = single;
        if (lay_out(sending) < 0)
            return -1;
    }
    struct tx *tx = sending->tx;
    int first = sending->done, last = first, sent, error;
    long spent = 0;
    do
        spent += work_of(tx, last++);
    while (last < sending->count && spent < budget);
    Py_BEGIN_ALLOW_THREADS
    do
        sent = sending->state->sendmmsg(fd, tx->headers + first, (unsigned int)(last - first),
                                        MSG_DONTWAIT | MSG_NOSIGNAL);
    while (sent < 0 && errno == EINTR);
    error = errno;
    Py_END_ALLOW_THREADS
    for (int i = first; i < first + sent; i++) {
        sending->datagrams += tx->messages[i].datagrams;
        sending->nbytes += tx->messages[i].nbytes;
        sending->work += work_of(tx, i);
    }
    if (sent > 0) {
        sending->messages += sent;
        sending->done += sent;
        sending->begin = tx->messages[sending->done - 1].end;
    }
    show_next(sending);
    if (sending->done == sending->count || (sent < 0 && (error == EAGAIN || error == EWOULDBLOCK)))
        let_go(sending);
    return sent < 0 ? error : 0;
}

/* A message has at most so many segments; 0 and 1 are no GSO. Returns -1 for what is out of range. */
static int most_segments(PyObject *argument) {
    long segments = PyLong_AsLong(argument);
    if (segments < 0 || segments > MAX_SEGMENTS) {
        if (!PyErr_Occurred())
            PyErr_Format(PyExc_ValueError, "%ld segments", segments);
        return -1;
    }
    return segments ? (int)segments : 1;
}

/* send(fd, budget, segments, single) -> 0, or the errno with which nothing was sent: see `transmit`
 * and the members. */
static PyObject *outgoing_send(Outgoing *sending, PyObject *const *args, Py_ssize_t count) {
    if (count != 4)
        return PyErr_Format(PyExc_TypeError, "send takes 4 arguments, not %zd", count);
    long fd = PyLong_AsLong(args[0]), budget = PyLong_AsLong(args[1]);
    int segments = PyErr_Occurred() ? -1 : most_segments(args[2]);
    if (segments < 0)
        return NULL;
    if (sending->begin.row >= sending->rows->count)
        return PyErr_Format(PyExc_ValueError, "nothing is left");
    int error = transmit(sending, (int)fd, budget, segments, args[3] == Py_True);
    return error < 0 ? NULL : PyLong_FromLong(error);
}

/* send_each(batches, fds, budget, segments, family) -> (calls, messages, datagrams, bytes, rest)
 *
 * Lists of rows and of sockets that are connected to whom they are for: one call for each. What was
 * not taken whole is in the rest, as (place, errno or 0, Outgoing). Where memory lacks, it tells what
 * became of those before: of the first `calls + len(rest)`. Only if these are none it raises, or if
 * the next is half sent and cannot be told of. */
PyObject *send_each(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    State *state = state_of(module);
    if (count != 5 || !PyList_Check(args[0]) || !PyList_Check(args[1]) ||
        PyList_Size(args[0]) != PyList_Size(args[1]))
        return PyErr_Format(PyExc_TypeError, "send_each takes two lists of one length");
    long budget = PyLong_AsLong(args[2]), family = PyErr_Occurred() ? 0 : PyLong_AsLong(args[4]);
    int segments = PyErr_Occurred() ? -1 : most_segments(args[3]);
    if (segments < 0)
        return NULL;
    PyObject *rest = PyList_New(0);
    long long calls = 0, messages = 0, datagrams = 0, nbytes = 0;
    int half = 0; /* whether something is sent of what is not told of */
    for (Py_ssize_t i = 0; rest && i < PyList_Size(args[0]); i++) {
        /* First: a number that is made on demand could take the rows out of their list. */
        PyObject *number = PyList_GetItem(args[1], i);
        long fd = number ? PyLong_AsLong(number) : -1;
        if (PyErr_Occurred())
            goto failed;
        PyObject *rows = PyList_GetItem(args[0], i);
        if (!rows || Py_TYPE(rows) != state->rows_type) {
            PyErr_Format(PyExc_TypeError, "send_each takes rows");
            goto failed;
        }
        Outgoing *sending = outgoing_new(state, (Rows *)Py_NewRef(rows), Py_None, (int)family);
        if (!sending)
            goto failed;
        int error = sending->begin.row < sending->rows->count
                        ? transmit(sending, (int)fd, budget, segments, 0)
                        : 0;
        if (error >= 0 && sending->begin.row >= sending->rows->count) {
            calls++;
            messages += sending->messages;
            datagrams += sending->datagrams;
            nbytes += sending->nbytes;
        } else {
            PyObject *left = error < 0 ? NULL : Py_BuildValue("niO", i, error, sending);
            error = left ? PyList_Append(rest, left) : -1;
            Py_XDECREF(left);
            half = error < 0 && sending->datagrams;
        }
        Py_DECREF(OBJECT(sending));
        if (error < 0)
            goto failed;
    }
    return rest ? Py_BuildValue("LLLLN", calls, messages, datagrams, nbytes, rest) : NULL;
failed:
    if (half || calls + PyList_Size(rest) == 0 || !PyErr_ExceptionMatches(PyExc_MemoryError)) {
        Py_DECREF(rest);
        return NULL;
    }
    PyErr_Clear(); /* who sends the others now meets it again, if it lasts */
    return Py_BuildValue("LLLLN", calls, messages, datagrams, nbytes, rest);
}

/* skip(train, offset): go on from there, where the refused message or a later one ends. */
static PyObject *outgoing_skip(Outgoing *sending, PyObject *const *args, Py_ssize_t count) {
    if (count != 2)
        return PyErr_Format(PyExc_TypeError, "skip takes 2 arguments, not %zd", count);
    long row = PyLong_AsLong(args[0]), offset = PyLong_AsLong(args[1]);
    if (PyErr_Occurred())
        return NULL;
    int rows = sending->rows->count;
    if (row < sending->begin.row || row > rows || offset < 0 ||
        (row == sending->begin.row && offset < (long)sending->begin.offset) ||
        (offset > 0 && (row == rows || offset >= (long)sending->rows->rows[row].length)))
        return PyErr_Format(PyExc_IndexError, "byte %ld of row %ld", offset, row);
    sending->begin = (struct place){(int)row, (uint32_t)offset};
    if (sending->done < sending->count && sending->end.row == row && sending->end.offset == offset)
        sending->done++; /* those behind it stay laid out */
    else
        let_go(sending);
    show_next(sending);
    Py_RETURN_NONE;
}

/* place_of(train) -> where a row stood among the rows that a program made. */
static PyObject *outgoing_place_of(Outgoing *sending, PyObject *argument) {
    long row = PyLong_AsLong(argument);
    if (PyErr_Occurred())
        return NULL;
    if (row < 0 || row >= sending->rows->count)
        return PyErr_Format(PyExc_IndexError, "row %ld of %d", row, sending->rows->count);
    return PyLong_FromLong(sending->rows->rows[row].index);
}

static void outgoing_dealloc(Outgoing *sending) {
    PyTypeObject *type = Py_TYPE(OBJECT(sending));
    let_go(sending);
    Py_DECREF(OBJECT(sending->rows));
    Py_DECREF(sending->name_owner);
    PyObject_Free(sending);
    Py_DECREF(type);
}

static PyObject *outgoing_more(Outgoing *sending, void *Py_UNUSED(closure)) {
    return PyBool_FromLong(sending->begin.row < sending->rows->count);
}

#define OFFSET(member) offsetof(Outgoing, member)
static PyMemberDef outgoing_members[] = {
    {"content", T_OBJECT_EX, OFFSET(rows), READONLY, "The rows, in the order in which they leave."},
    {"messages", T_LONGLONG, OFFSET(messages), READONLY, "Messages that the kernel took so far."},
    {"datagrams", T_LONGLONG, OFFSET(datagrams), READONLY, "Datagrams in them."},
    {"nbytes", T_LONGLONG, OFFSET(nbytes), READONLY, "Payload bytes in them."},
    {"work", T_INT, OFFSET(work), READONLY, "What the messages of the last call count for."},
    {"train", T_INT, OFFSET(begin.row), READONLY, "The train that the next message begins in."},
    {"offset", T_UINT, OFFSET(begin.offset), READONLY, "The payload bytes before it in the train."},
    {"end_train", T_INT, OFFSET(end.row), READONLY, "The train behind the next message."},
    {"end_offset", T_UINT, OFFSET(end.offset), READONLY, "The bytes before its end in that train."},
    {"segmented", T_BOOL, OFFSET(segmented), READONLY, "Whether the next message is segmented."},
    {NULL, 0, 0, 0, NULL},
};
static PyGetSetDef outgoing_getset[] = {
    {"more", (getter)outgoing_more, NULL, "Whether anything is left.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};
static PyMethodDef outgoing_methods[] = {
    {"send", (PyCFunction)(void (*)(void))outgoing_send, METH_FASTCALL,
     "send(fd, budget, segments, single) -> 0, or the errno with which nothing was sent"},
    {"place_of", (PyCFunction)outgoing_place_of, METH_O,
     "place_of(train) -> where it stood among those that a program made"},
    {"skip", (PyCFunction)(void (*)(void))outgoing_skip, METH_FASTCALL,
     "skip(train, offset): leave out what is before, which was refused"},
    {NULL, NULL, 0, NULL},
};
static PyType_Slot outgoing_slots[] = {
    {Py_tp_dealloc, outgoing_dealloc}, {Py_tp_members, outgoing_members},
    {Py_tp_getset, outgoing_getset},   {Py_tp_methods, outgoing_methods},
    {Py_tp_doc, "Rows that are being sent, and how far they got."},
    {0, NULL},
};
PyType_Spec outgoing_spec = {
    .name = "snaptun_trio._kernel._rows.Outgoing",
    .basicsize = sizeof(Outgoing),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = outgoing_slots,
};
