/* The module: its types, its state, and the three functions of Python that are asked for what is rare.
 */
#include "_rows.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

State *state_of(PyObject *module) { return PyModule_GetState(module); }

/* use(decode, make_trains, way_back): how a raw name becomes an address, rows become trains, and
 * packet information the way of an answer. */
static PyObject *use(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    State *state = state_of(module);
    if (count != 3)
        return PyErr_Format(PyExc_TypeError, "use takes 3 functions");
    set_reference(&state->decode, Py_NewRef(args[0]));
    set_reference(&state->make_trains, Py_NewRef(args[1]));
    set_reference(&state->way_back, Py_NewRef(args[2]));
    Py_RETURN_NONE;
}

/* forbidden() -> the name of a call that this system lacks or forbids, or None.
 *
 * A sandbox may forbid them (seccomp). Asked of no descriptor, a call that exists says EBADF. */
static PyObject *forbidden(PyObject *module, PyObject *Py_UNUSED(ignored)) {
    State *state = state_of(module);
    if (state->recvmmsg(-1, NULL, 0, 0, NULL) >= 0 || errno != EBADF)
        return PyUnicode_FromString("recvmmsg");
    if (state->sendmmsg(-1, NULL, 0, 0) >= 0 || errno != EBADF)
        return PyUnicode_FromString("sendmmsg");
    Py_RETURN_NONE;
}

#ifdef SNAPTUN_TRIO_TEST_HOOKS
/* copy_up_to(bytes) -> the bytes before: which batches get memory of their own. For the tests. */
static PyObject *copy_up_to(PyObject *module, PyObject *argument) {
    State *state = state_of(module);
    long bytes = PyLong_AsLong(argument), before = state->copied_up_to;
    if (PyErr_Occurred())
        return NULL;
    state->copied_up_to = (int)bytes;
    return PyLong_FromLong(before);
}

/* interpose(recvmmsg, sendmmsg): call these addresses in place of the C library, 0 for the latter.
 * Only a build for the tests has it. */
static PyObject *interpose(PyObject *module, PyObject *const *args, Py_ssize_t count) {
    State *state = state_of(module);
    if (count != 2)
        return PyErr_Format(PyExc_TypeError, "interpose takes 2 addresses");
    void *receive = PyLong_AsVoidPtr(args[0]), *send = PyLong_AsVoidPtr(args[1]);
    if (PyErr_Occurred())
        return NULL;
    state->recvmmsg = receive ? *(int (**)(int, struct mmsghdr *, unsigned int, int,
                                           struct timespec *))&receive
                              : recvmmsg;
    state->sendmmsg = send ? *(int (**)(int, struct mmsghdr *, unsigned int, int))&send : sendmmsg;
    Py_RETURN_NONE;
}

/* forget(): the addresses that were decoded. */
static PyObject *forget(PyObject *module, PyObject *Py_UNUSED(ignored)) {
    addresses_free(state_of(module));
    return addresses_new(state_of(module)) < 0 ? NULL : Py_NewRef(Py_None);
}

static long allocations_left = -1, allocations_held; /* under the GIL, as all that allocates */

int allocation_fails(void) { return allocations_left >= 0 && allocations_left-- == 0; }

void *held(void *memory, int more) {
    if (memory && memory != MAP_FAILED)
        allocations_held += more;
    return memory;
}

/* fail_allocation(n) -> (how many were left to go before, how many are held)
 *
 * Let the n-th allocation of ours from now on fail, once; none with -1. Python's own do not count. */
static PyObject *fail_allocation(PyObject *Py_UNUSED(module), PyObject *argument) {
    long fail = PyLong_AsLong(argument), before = allocations_left;
    if (PyErr_Occurred())
        return NULL;
    allocations_left = fail;
    return Py_BuildValue("ll", before, allocations_held);
}
#endif

static int module_exec(PyObject *module) {
    State *state = state_of(module);
    state->recvmmsg = recvmmsg;
    state->sendmmsg = sendmmsg;
    state->copied_up_to = 4096;
    if (addresses_new(state) < 0)
        return -1;
    struct {
        PyTypeObject **type;
        PyType_Spec *spec;
    } types[] = {
        {&state->pool_type, &pool_spec},
        {&state->lease_type, &lease_spec},
        {&state->rows_type, &rows_spec},
        {&state->outgoing_type, &outgoing_spec},
    };
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        *types[i].type = (PyTypeObject *)PyType_FromModuleAndSpec(module, types[i].spec, NULL);
        if (!*types[i].type || PyModule_AddType(module, *types[i].type) < 0)
            /* CPython raises nothing where it has no memory for a type's name, up to 3.13 */
            return PyErr_Occurred() ? -1 : (PyErr_NoMemory(), -1);
    }
    return 0;
}

static int module_traverse(PyObject *module, visitproc visit, void *arg) {
    State *state = state_of(module);
    Py_VISIT(state->pool_type);
    Py_VISIT(state->lease_type);
    Py_VISIT(state->rows_type);
    Py_VISIT(state->outgoing_type);
    Py_VISIT(state->decode);
    Py_VISIT(state->make_trains);
    Py_VISIT(state->way_back);
    return 0;
}

static int module_clear(PyObject *module) {
    State *state = state_of(module);
    Py_CLEAR(state->pool_type);
    Py_CLEAR(state->lease_type);
    Py_CLEAR(state->rows_type);
    Py_CLEAR(state->outgoing_type);
    Py_CLEAR(state->decode);
    Py_CLEAR(state->make_trains);
    Py_CLEAR(state->way_back);
    return 0;
}

static void module_free(void *module) {
    State *state = state_of(module);
    module_clear(module);
    addresses_free(state);
    free(state->idle_tx);
}

static PyMethodDef functions[] = {
    {"use", (PyCFunction)(void (*)(void))use, METH_FASTCALL,
     "use(decode, make_trains, way_back): the functions that are asked for what is rare."},
    {"forbidden", forbidden, METH_NOARGS, "The call that this system lacks or forbids, or None."},
    {"rows", (PyCFunction)(void (*)(void))rows_of, METH_FASTCALL,
     "rows(payloads, sizes, names, controls, addresses) -> Rows of what a program made."},
    {"outgoing", (PyCFunction)(void (*)(void))outgoing, METH_FASTCALL,
     "outgoing(rows, name, family) -> Outgoing"},
    {"send_each", (PyCFunction)(void (*)(void))send_each, METH_FASTCALL,
     "send_each(batches, fds, budget, segments, family) -> (calls, messages, datagrams, bytes, rest)"},
#ifdef SNAPTUN_TRIO_TEST_HOOKS
    {"copy_up_to", copy_up_to, METH_O, "copy_up_to(bytes) -> the bytes before"},
    {"interpose", (PyCFunction)(void (*)(void))interpose, METH_FASTCALL,
     "interpose(recvmmsg, sendmmsg): call these addresses, 0 for the C library's."},
    {"forget", forget, METH_NOARGS, "forget(): the addresses that were decoded."},
    {"fail_allocation", fail_allocation, METH_O, "fail_allocation(n) -> (left before, held)"},
#endif
    {NULL, NULL, 0, NULL},
};
static PyModuleDef_Slot slots[] = {{Py_mod_exec, module_exec}, {0, NULL}};
static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_rows",
    .m_doc = "Batches as rows: recvmmsg, sendmmsg, GRO and GSO.",
    .m_size = sizeof(State),
    .m_methods = functions,
    .m_slots = slots,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
    .m_free = module_free,
};

PyMODINIT_FUNC PyInit__rows(void);
PyMODINIT_FUNC PyInit__rows(void) { return PyModuleDef_Init(&definition); }
