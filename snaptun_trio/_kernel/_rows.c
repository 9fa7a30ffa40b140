/* Rows as Python sees them: the columns of a batch, its datagrams, and the module itself. */
#include "_rows.h"

#include <stdlib.h>
#include <string.h>

/* -- making rows */

Rows *rows_new(State *state) {
    Rows *rows = PyObject_GC_New(Rows, state->rows_type);
    if (rows) {
        memset((char *)rows + offsetof(Rows, state), 0, sizeof *rows - offsetof(Rows, state));
        rows->state = state;
        rows->plain = 1;
        PyObject_GC_Track(rows);
    }
    return rows;
}

/* Count datagrams and bytes. */
void rows_sum(Rows *rows) {
    rows->datagrams = rows->nbytes = rows->most_segments = 0;
    for (int i = 0; i < rows->count; i++) {
        struct row *row = &rows->rows[i];
        row->segments = row->length > row->size && row->size ? (row->length - 1) / row->size + 1 : 1;
        rows->datagrams += row->segments;
        rows->nbytes += row->length;
        if ((int)row->segments > rows->most_segments)
            rows->most_segments = (int)row->segments;
    }
}

static int row_payload(Rows *rows, struct row *row, PyObject *payload) {
    Py_ssize_t length;
    if (PyBytes_Check(payload)) {
        row->base = PyBytes_AsString(payload);
        length = PyBytes_Size(payload);
    } else {
        Py_buffer *view = &rows->views[rows->views_count];
        if (PyObject_GetBuffer(payload, view, PyBUF_SIMPLE) < 0)
            return -1;
        rows->views_count++;
        row->base = view->buf;
        length = view->len;
    }
    if (length > INT32_MAX)
        return PyErr_Format(PyExc_ValueError, "%zd bytes", length), -1;
    row->length = row->told = (uint32_t)length;
    return 0;
}

/* A name or control messages: bytes that `rows->extra` keeps. */
int row_bytes(PyObject *object, const char **base, uint16_t *length, Py_ssize_t most) {
    *base = NULL;
    *length = 0;
    if (object == Py_None)
        return 0;
    Py_ssize_t size = PyBytes_Check(object) ? PyBytes_Size(object) : -1;
    if (size < 0 || size > most)
        return PyErr_Format(PyExc_ValueError, "at most %zd bytes, or None", most), -1;
    if (size) {
        *base = PyBytes_AsString(object);
        *length = (uint16_t)size;
    }
    return 0;
}

/* rows(payloads, sizes, names, controls, addresses) -> Rows of what a program made.
 *
 * Lists of the same length. A name is raw, of its true length, or None for the connected peer;
 * control messages are raw, without the segment size, or None; `controls` may be None as a whole. */
PyObject *rows_of(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    if (count != 5 || !PyList_Check(args[0]) || !PyList_Check(args[1]) || !PyList_Check(args[2]) ||
        !(args[3] == Py_None || PyList_Check(args[3])) || !PyList_Check(args[4]))
        return PyErr_Format(PyExc_TypeError, "rows takes lists");
    Py_ssize_t n = PyList_Size(args[0]);
    for (int i = 1; i < 5; i++)
        if (args[i] != Py_None && PyList_Size(args[i]) != n)
            return PyErr_Format(PyExc_ValueError, "lists of one length are needed");
    if (n > INT32_MAX / (Py_ssize_t)sizeof(struct row))
        return PyErr_NoMemory();
    Rows *rows = rows_new(state_of(module));
    if (!rows)
        return NULL;
    /* Copies of the lists: what the rows point to must not be taken out of them. */
    rows->owner = PyList_GetSlice(args[0], 0, n);
    rows->addresses = PyList_GetSlice(args[4], 0, n);
    PyObject *names = PyList_GetSlice(args[2], 0, n), *controls = args[3];
    controls = controls == Py_None ? Py_NewRef(Py_None) : PyList_GetSlice(controls, 0, n);
    if (names && controls)
        rows->extra = PyTuple_Pack(2, names, controls);
    Py_XDECREF(names);
    Py_XDECREF(controls);
    rows->rows = rows->memory = calloc((size_t)(n ? n : 1), sizeof(struct row));
    rows->views = calloc((size_t)(n ? n : 1), sizeof(Py_buffer));
    if (!rows->owner || !rows->addresses || !rows->extra)
        goto failed;
    if (!rows->rows || !rows->views) {
        PyErr_NoMemory();
        goto failed;
    }
    for (Py_ssize_t i = 0; i < n; i++) {
        struct row *row = &rows->rows[i];
        row->index = (int)i;
        unsigned long size = PyLong_AsUnsignedLong(PyList_GetItem(args[1], i));
        if (PyErr_Occurred() || row_payload(rows, row, PyList_GetItem(rows->owner, i)) < 0)
            goto failed;
        if (size > UINT16_MAX && size < row->length) {
            PyErr_Format(PyExc_ValueError, "a segment size of %lu", size);
            goto failed;
        }
        row->size = size < row->length ? (uint32_t)size : row->length;
        if (!row->size && row->length)
            row->size = row->length;
        if (row_bytes(PyList_GetItem(names, i), &row->name, &row->name_length, NAME_SIZE) < 0)
            goto failed;
        if (controls != Py_None) {
            if (row_bytes(PyList_GetItem(controls, i), &row->control, &row->control_length,
                          CONTROL_SAID) < 0)
                goto failed;
            rows->plain &= !row->control;
        }
    }
    rows->count = (int)n;
    rows->says = 1;
    rows_sum(rows);
    return (PyObject *)rows;
failed:
    Py_DECREF(OBJECT(rows));
    return NULL;
}

/* Bring rows that came in to memory of their own. Returns 0 where there is none, and sets nothing. */
int rows_copy(Rows *rows) {
    size_t controls = 0, count = (size_t)rows->count;
    for (size_t i = 0; i < count; i++)
        controls += rows->rows[i].control_length;
    char *memory = malloc(count * (sizeof(struct row) + NAME_SIZE) + controls);
    PyObject *bytes = memory ? PyBytes_FromStringAndSize(NULL, (Py_ssize_t)rows->nbytes) : NULL;
    char *payload = bytes ? PyBytes_AsString(bytes) : NULL;
    if (!payload) {
        PyErr_Clear();
        Py_XDECREF(bytes);
        free(memory);
        return 0;
    }
    struct row *copies = (struct row *)memory;
    char *names = memory + count * sizeof(struct row), *control = names + count * NAME_SIZE;
    memcpy(copies, rows->rows, count * sizeof(struct row));
    for (size_t i = 0; i < count; i++, names += NAME_SIZE) {
        struct row *row = &copies[i];
        memcpy(payload, row->base, row->length);
        row->base = payload;
        payload += row->length;
        if (row->name)
            row->name = memcpy(names, row->name, row->name_length);
        if (row->control) {
            row->control = memcpy(control, row->control, row->control_length);
            control += row->control_length;
        }
    }
    rows->rows = copies;
    rows->memory = memory;
    set_reference(&rows->owner, bytes); /* the lease goes, and puts the slab back */
    return 1;
}

/* detached() -> the same rows on memory of their own; these very ones where no slab is held. */
static PyObject *rows_detached(Rows *rows, PyObject *Py_UNUSED(ignored)) {
    if (!rows->owner || Py_TYPE(rows->owner) != rows->state->lease_type)
        return Py_NewRef(OBJECT(rows));
    Rows *detached = rows_new(rows->state);
    if (!detached)
        return NULL;
    detached->plain = rows->plain;
    detached->cut = rows->cut;
    detached->rows = rows->rows;
    detached->count = rows->count;
    rows_sum(detached);
    if (!rows_copy(detached)) {
        Py_DECREF(OBJECT(detached));
        return PyErr_NoMemory();
    }
    return (PyObject *)detached;
}

static int rows_traverse(Rows *rows, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(OBJECT(rows)));
    Py_VISIT(rows->owner);
    Py_VISIT(rows->addresses);
    Py_VISIT(rows->extra);
    for (int i = 0; i < rows->views_count; i++)
        Py_VISIT(rows->views[i].obj);
    return 0;
}

static int rows_clear(Rows *rows) {
    rows->count = 0; /* nothing points anywhere any more */
    while (rows->views_count)
        PyBuffer_Release(&rows->views[--rows->views_count]);
    Py_CLEAR(rows->owner);
    Py_CLEAR(rows->addresses);
    Py_CLEAR(rows->extra);
    return 0;
}

static void rows_dealloc(Rows *rows) {
    PyTypeObject *type = Py_TYPE(OBJECT(rows));
    PyObject_GC_UnTrack(rows);
    rows_clear(rows);
    free(rows->views);
    free(rows->memory);
    PyObject_GC_Del(rows);
    Py_DECREF(type);
}

/* -- looking at rows */

/* Whether so many bytes of them are all that was copied: then they are an object already. */
static int owns_only(const Rows *rows, uint32_t length) {
    return PyBytes_Check(rows->owner) && PyBytes_Size(rows->owner) == (Py_ssize_t)length;
}

/* Each datagram with its address. */
static PyObject *rows_packets(Rows *rows, PyObject *Py_UNUSED(ignored)) {
    PyObject *list = PyList_New((Py_ssize_t)rows->datagrams), *address = NULL;
    Py_ssize_t at = 0;
    for (int i = 0; list && i < rows->count; i++) {
        struct row *row = &rows->rows[i];
        if (!address || rows->addresses || !same_name(row, row - 1)) {
            set_reference(&address, address_of(rows, i));
            if (!address)
                goto failed;
        }
        uint32_t done = 0;
        do {
            uint32_t left = row->length - done, size = left < row->size ? left : row->size;
            PyObject *packet = owns_only(rows, size)
                                   ? Py_NewRef(rows->owner)
                                   : PyBytes_FromStringAndSize(row->base + done, size);
            PyObject *pair = packet ? PyTuple_Pack(2, packet, address) : NULL;
            Py_XDECREF(packet);
            if (!pair || PyList_SetItem(list, at++, pair) < 0)
                goto failed;
            done += size;
        } while (done < row->length);
    }
    Py_XDECREF(address);
    return list;
failed:
    Py_XDECREF(address);
    Py_DECREF(list);
    return NULL;
}

/* The bytes of one row, in the form in which a train has them. */
static PyObject *row_data(Rows *rows, struct row *row) {
    if (PyList_Check(rows->owner))
        return Py_XNewRef(PyList_GetItem(rows->owner, row->index));
    if (!PyBytes_Check(rows->owner))
        return lease_memory(rows->owner, row->base, row->length);
    return owns_only(rows, row->length)
               ? Py_NewRef(rows->owner)
               : PyBytes_FromStringAndSize(row->base, row->length);
}

/* row(index) -> (data, bytes it had, segment size, address, control messages, flags) */
static PyObject *rows_row(Rows *rows, PyObject *argument) {
    long index = PyLong_AsLong(argument);
    if (PyErr_Occurred())
        return NULL;
    if (index < 0 || index >= rows->count)
        return PyErr_Format(PyExc_IndexError, "row %ld of %d", index, rows->count);
    struct row *row = &rows->rows[index];
    PyObject *data = row_data(rows, row);
    PyObject *address = data ? address_of(rows, (int)index) : NULL;
    if (!address) {
        Py_XDECREF(data);
        return NULL;
    }
    return Py_BuildValue("NIINy#i", data, row->told, row->size, address,
                         row->control ? row->control : "", (Py_ssize_t)row->control_length,
                         (int)row->flags);
}

static PyObject *rows_trains(Rows *rows, PyObject *Py_UNUSED(ignored)) {
    return PyObject_CallFunction(rows->state->make_trains, "Oii", rows, 0, rows->count);
}

static PyObject *rows_train(Rows *rows, PyObject *argument) {
    long index = PyLong_AsLong(argument);
    if (PyErr_Occurred())
        return NULL;
    PyObject *trains =
        PyObject_CallFunction(rows->state->make_trains, "Oll", rows, index, index + 1);
    PyObject *train = trains ? Py_XNewRef(PyTuple_GetItem(trains, 0)) : NULL;
    Py_XDECREF(trains);
    return train;
}

/* The address family of the first row's name, 0 where it has none. */
static PyObject *rows_family(Rows *rows, void *Py_UNUSED(closure)) {
    sa_family_t family = 0;
    if (rows->count && rows->rows[0].name_length >= sizeof family)
        memcpy(&family, rows->rows[0].name + offsetof(struct sockaddr, sa_family), sizeof family);
    return PyLong_FromLong(family);
}

/* What came in cut goes through Python; rows never lost anything. */
static PyObject *rows_losses(Rows *Py_UNUSED(rows), void *Py_UNUSED(closure)) { Py_RETURN_NONE; }

static PyMemberDef rows_members[] = {
    {"count", T_INT, offsetof(Rows, count), READONLY, "The number of trains."},
    {"datagrams", T_LONGLONG, offsetof(Rows, datagrams), READONLY, "The number of datagrams."},
    {"nbytes", T_LONGLONG, offsetof(Rows, nbytes), READONLY, "The payload bytes."},
    {"plain", T_BOOL, offsetof(Rows, plain), READONLY,
     "Whether no train has control messages other than the segment size."},
    {"cut", T_BOOL, offsetof(Rows, cut), READONLY, "Whether a buffer was too small for one."},
    {"served", T_INT, offsetof(Rows, served), READONLY, "Sockets that `receive_each` has read."},
    {"error", T_INT, offsetof(Rows, error), READONLY, "What the last of them met, or 0."},
    {NULL, 0, 0, 0, NULL},
};
static PyGetSetDef rows_getset[] = {
    {"losses", (getter)rows_losses, NULL, "Nothing is missing.", NULL},
    {"one_way", (getter)rows_one_way, NULL, "Whether all came to one address of ours.", NULL},
    {"family", (getter)rows_family, NULL, "The address family of the peers, 0 for none.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};
static PyMethodDef rows_methods[] = {
    {"packets", (PyCFunction)rows_packets, METH_NOARGS, "Each datagram with its address."},
    {"by_address", (PyCFunction)rows_by_address, METH_NOARGS, "The rows of each peer, by address."},
    {"way_back", (PyCFunction)rows_way_back, METH_NOARGS, "How an answer to the first row leaves."},
    {"detached", (PyCFunction)rows_detached, METH_NOARGS, "The same on memory of their own."},
    {"row", (PyCFunction)rows_row, METH_O,
     "(data, bytes it had, segment size, address, control messages, flags) of one row"},
    {"trains", (PyCFunction)rows_trains, METH_NOARGS, "The trains, one for each row, made now."},
    {"train", (PyCFunction)rows_train, METH_O, "One of the trains, without making the others."},
    {NULL, NULL, 0, NULL},
};
static PyType_Slot rows_slots[] = {
    {Py_tp_dealloc, rows_dealloc}, {Py_tp_traverse, rows_traverse}, {Py_tp_clear, rows_clear},
    {Py_tp_members, rows_members}, {Py_tp_getset, rows_getset},     {Py_tp_methods, rows_methods},
    {Py_tp_doc, "The columns of a batch."},
    {0, NULL},
};
PyType_Spec rows_spec = {
    .name = "snaptun_trio._kernel._rows.Rows",
    .basicsize = sizeof(Rows),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION | Py_TPFLAGS_IMMUTABLETYPE |
             Py_TPFLAGS_HAVE_GC,
    .slots = rows_slots,
};
