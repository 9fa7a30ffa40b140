/* Sending: how rows become messages, and what became of them.
 *
 * This is the one place that decides what is one message. Neighbours for one peer that make a train
 * together leave as one, scattered over as many iovecs as it takes; a train over the kernel's limits
 * is split; without GSO each datagram is a message of its own. What is laid out stays so for a turn
 * of sending: a message that the kernel refuses is tried again, or skipped, without touching those
 * behind it.
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
    KEPT_TX = 4,
};

struct place { /* where in the rows something ends */
    int row;
    uint32_t offset;
};

struct tx {
    struct tx *next;
    struct mmsghdr headers[MAX_MESSAGES];
    struct iovec iovecs[MAX_PIECES];
    struct {
        struct place end;
        uint32_t datagrams, nbytes, segmented;
    } messages[MAX_MESSAGES];
    union {
        struct cmsghdr aligned;
        char bytes[CONTROL_OUT];
    } controls[MAX_MESSAGES];
};

typedef struct {
    PyObject_HEAD
    State *state;
    Rows *rows;
    PyObject *name_owner;
    struct tx *tx;
    int count, done; /* messages laid out; of them sent or skipped */
    /* The account of the last call. */
    struct place begin, end;
    int messages, error;
    long long datagrams, nbytes;
    char segmented;
} Transmission;

static struct tx *tx_take(State *state) {
    struct tx *tx = state->idle_tx;
    if (!tx)
        return malloc(sizeof *tx);
    state->idle_tx = tx->next;
    state->idle_tx_count--;
    return tx;
}

static void tx_put(State *state, struct tx *tx) {
    if (state->idle_tx_count >= KEPT_TX) {
        free(tx);
        return;
    }
    tx->next = state->idle_tx;
    state->idle_tx = tx;
    state->idle_tx_count++;
}

void tx_free_all(State *state) {
    for (struct tx *tx = state->idle_tx, *next; tx; tx = next) {
        next = tx->next;
        free(tx);
    }
    state->idle_tx = NULL;
    state->idle_tx_count = 0;
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
    int own_names, controls, gso, family;
};

static int same_control(const struct row *a, const struct row *b) {
    return a->control_length == b->control_length &&
           (!a->control_length || memcmp(a->control, b->control, a->control_length) == 0);
}

/* Whether another row may follow in a message that begins with `first` and has so much in it. */
static int may_follow(const struct layout *how, const struct row *first, const struct row *last,
                      const struct row *next, uint32_t nbytes, uint32_t segments, uint32_t room) {
    return last->length && last->length % first->size == 0 && next->length &&
           nbytes + next->length <= room && segments + next->segments <= MAX_SEGMENTS &&
           (next->size == first->size || (next->segments == 1 && next->length < first->size)) &&
           (!how->own_names || same_name(first, next)) &&
           (!how->controls || same_control(first, next));
}

/* Lay out one message from `place` on. Returns the iovecs that it takes. */
static int lay_out(struct tx *tx, int index, int iovecs, Rows *rows, const struct layout *how,
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
        uint32_t most = how->gso ? (row->length <= whole ? whole : room) / row->size : 1;
        most = most < 1 ? 1 : most > MAX_SEGMENTS ? MAX_SEGMENTS : most;
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
        int joins = how->gso && nbytes == row->length;
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
    tx->messages[index].segmented = segments > 1;
    return used;
}

/* prepare(rows, name, row, offset, gso, single, family) -> Transmission from there on.
 *
 * `name` is raw bytes for all rows, None for the connected peer, or True: each row its own. `single`
 * lays out the one datagram there, unsegmented. */
PyObject *prepare(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    State *state = state_of(module);
    if (count != 7 || Py_TYPE(args[0]) != state->rows_type)
        return PyErr_Format(PyExc_TypeError, "prepare takes rows and 6 more");
    Rows *rows = (Rows *)args[0];
    long row = PyLong_AsLong(args[2]), offset = PyLong_AsLong(args[3]);
    long family = PyLong_AsLong(args[6]);
    int single = args[5] == Py_True;
    struct layout how = {.own_names = args[1] == Py_True,
                         /* of a received row they are what the kernel said, and not to be said */
                         .controls = rows->addresses != NULL,
                         .gso = args[4] == Py_True && !single,
                         .family = (int)family};
    if (PyErr_Occurred())
        return NULL;
    if (row < 0 || row >= rows->count || offset < 0 ||
        (offset > 0 && offset >= (long)rows->rows[row].length))
        return PyErr_Format(PyExc_IndexError, "byte %ld of row %ld", offset, row);
    if (!how.own_names && args[1] != Py_None) {
        Py_ssize_t length = PyBytes_Check(args[1]) ? PyBytes_Size(args[1]) : -1;
        if (length < 0 || length > NAME_SIZE)
            return PyErr_Format(PyExc_ValueError, "a name has at most %d bytes", NAME_SIZE);
        how.name = PyBytes_AsString(args[1]);
        how.name_length = (uint16_t)length;
    }
    Transmission *sending = PyObject_New(Transmission, state->transmission_type);
    if (!sending)
        return NULL;
    memset((char *)sending + offsetof(Transmission, state), 0,
           sizeof *sending - offsetof(Transmission, state));
    sending->state = state;
    sending->rows = (Rows *)Py_NewRef(OBJECT(rows));
    sending->name_owner = Py_NewRef(args[1]);
    sending->tx = tx_take(state);
    if (!sending->tx) {
        Py_DECREF(OBJECT(sending));
        return PyErr_NoMemory();
    }
    struct place place = {(int)row, (uint32_t)offset};
    sending->begin = place;
    for (int iovecs = 0; place.row < rows->count && sending->count < (single ? 1 : MAX_MESSAGES) &&
                         iovecs < MAX_PIECES;
         sending->count++)
        iovecs += lay_out(sending->tx, sending->count, iovecs, rows, &how, &place);
    return (PyObject *)sending;
}

/* -- sending what is laid out */

/* send(fd, most) -> 0, or the errno with which nothing was sent; see the members. */
static PyObject *transmission_send(Transmission *sending, PyObject *const *args, Py_ssize_t count) {
    if (count != 2)
        return PyErr_Format(PyExc_TypeError, "send takes 2 arguments, not %zd", count);
    long fd = PyLong_AsLong(args[0]), most = PyLong_AsLong(args[1]);
    if (PyErr_Occurred())
        return NULL;
    int left = sending->tx ? sending->count - sending->done : 0, first = sending->done, sent, error;
    if (most < 1 || left < 1)
        return PyErr_Format(PyExc_ValueError, "%ld of %d messages", most, left);
    struct tx *tx = sending->tx;
    Py_BEGIN_ALLOW_THREADS
    do
        sent = sending->state->sendmmsg((int)fd, tx->headers + first,
                                           (unsigned int)(most < left ? most : left),
                                           MSG_DONTWAIT | MSG_NOSIGNAL);
    while (sent < 0 && errno == EINTR);
    error = errno;
    Py_END_ALLOW_THREADS
    sending->messages = 0;
    sending->datagrams = sending->nbytes = 0;
    sending->error = sent < 0 ? error : 0;
    for (int i = 0; i < sent; i++) {
        sending->datagrams += tx->messages[first + i].datagrams;
        sending->nbytes += tx->messages[first + i].nbytes;
    }
    if (sent > 0) {
        sending->messages = sent;
        sending->done += sent;
        sending->begin = tx->messages[sending->done - 1].end;
    }
    if (sending->done < sending->count) { /* the message that is next: the refused one, if any */
        sending->end = tx->messages[sending->done].end;
        sending->segmented = (char)tx->messages[sending->done].segmented;
    }
    return PyLong_FromLong(sending->error);
}

static PyObject *transmission_skip(Transmission *sending, PyObject *Py_UNUSED(ignored)) {
    if (sending->tx && sending->done < sending->count)
        sending->begin = sending->tx->messages[sending->done++].end;
    Py_RETURN_NONE;
}

static PyObject *transmission_close(Transmission *sending, PyObject *Py_UNUSED(ignored)) {
    if (sending->tx)
        tx_put(sending->state, sending->tx);
    sending->tx = NULL;
    sending->count = sending->done = 0;
    Py_CLEAR(sending->rows);
    Py_CLEAR(sending->name_owner);
    Py_RETURN_NONE;
}

static void transmission_dealloc(Transmission *sending) {
    PyTypeObject *type = Py_TYPE(OBJECT(sending));
    Py_DECREF(transmission_close(sending, NULL));
    PyObject_Free(sending);
    Py_DECREF(type);
}

static PyObject *transmission_more(Transmission *sending, void *Py_UNUSED(closure)) {
    return PyBool_FromLong(sending->done < sending->count);
}

#define OFFSET(member) offsetof(Transmission, member)
static PyMemberDef transmission_members[] = {
    {"messages", T_INT, OFFSET(messages), READONLY, "Messages that the last call took."},
    {"datagrams", T_LONGLONG, OFFSET(datagrams), READONLY, "Datagrams in them."},
    {"nbytes", T_LONGLONG, OFFSET(nbytes), READONLY, "Payload bytes in them."},
    {"train", T_INT, OFFSET(begin.row), READONLY, "The train that the next message begins in."},
    {"offset", T_UINT, OFFSET(begin.offset), READONLY, "The payload bytes before it in the train."},
    {"end_train", T_INT, OFFSET(end.row), READONLY, "The train behind the next message."},
    {"end_offset", T_UINT, OFFSET(end.offset), READONLY, "The bytes before its end in that train."},
    {"segmented", T_BOOL, OFFSET(segmented), READONLY, "Whether the next message is segmented."},
    {NULL, 0, 0, 0, NULL},
};
static PyGetSetDef transmission_getset[] = {
    {"more", (getter)transmission_more, NULL, "Whether messages are left.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};
static PyMethodDef transmission_methods[] = {
    {"send", (PyCFunction)(void (*)(void))transmission_send, METH_FASTCALL,
     "send(fd, most) -> 0, or the errno with which nothing was sent"},
    {"skip", (PyCFunction)transmission_skip, METH_NOARGS, "Leave out the next message."},
    {"close", (PyCFunction)transmission_close, METH_NOARGS, "Let go of everything."},
    {NULL, NULL, 0, NULL},
};
static PyType_Slot transmission_slots[] = {
    {Py_tp_dealloc, transmission_dealloc}, {Py_tp_members, transmission_members},
    {Py_tp_getset, transmission_getset},   {Py_tp_methods, transmission_methods},
    {Py_tp_doc, "Messages that are laid out for sendmmsg."},
    {0, NULL},
};
PyType_Spec transmission_spec = {
    .name = "snaptun_trio._kernel._rows.Transmission",
    .basicsize = sizeof(Transmission),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = transmission_slots,
};
