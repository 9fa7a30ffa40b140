/* Who rows are from: names, the addresses that they are decoded to, and rows peer by peer; and which
 * address of ours they came to.
 *
 * A stranger chooses the names: hashes have a seed of their own, tables are bounded by the rows that
 * there are, and what is remembered of names is bounded as well.
 */
#include "_rows.h"

#include <netinet/in.h>
#include <stdlib.h>

/* Addresses that were decoded, by raw name. Bounded: a stranger chooses the names that we decode, and
 * may choose a new one for every datagram. Each name has four places that it can be in: with one, ten
 * thousand peers were in each other's way, and a fourth of them were decoded again and again. */
enum { CACHED_ADDRESSES = 16384, PLACES = 4 };
struct cached {
    char name[NAME_SIZE];
    uint16_t length;
    PyObject *address;
};
struct address_cache {
    struct cached entries[CACHED_ADDRESSES];
};

/* MurmurHash3 (32 bits) of a name. The last bytes of ports and hosts, in which peers differ, are the
 * highest of their words: without its rotations they would not reach the bits that choose a place. The
 * seed is this process's own, since strangers choose the names. */
static uint32_t hash_name(const State *state, const struct row *row) {
    uint32_t hash = state->seed, word;
    for (int at = 0; at + 4 <= row->name_length; at += 4) {
        memcpy(&word, row->name + at, sizeof word);
        word *= 0xcc9e2d51;
        word = (word << 15 | word >> 17) * 0x1b873593;
        hash ^= word;
        hash = (hash << 13 | hash >> 19) * 5 + 0xe6546b64;
    }
    hash = (hash ^ hash >> 16) * 0x85ebca6b;
    hash = (hash ^ hash >> 13) * 0xc2b2ae35;
    return hash ^ hash >> 16;
}

/* The part of a name that names a peer: what lies behind the address of an IPv4 name is padding. */
static int significant(const struct row *row) {
    return row->name_length == sizeof(struct sockaddr_in) ? 8 : row->name_length;
}

int same_name(const struct row *a, const struct row *b) {
    return a->name == b->name ||
           (a->name_length == b->name_length && a->name && b->name &&
            memcmp(a->name, b->name, (size_t)significant(a)) == 0);
}

static PyObject *decode_name(State *state, const struct row *row) {
    if (!row->name)
        Py_RETURN_NONE;
    uint32_t hash = hash_name(state, row);
    struct cached *places =
        &state->addresses->entries[hash % (CACHED_ADDRESSES / PLACES) * PLACES];
    struct cached *entry = &places[hash >> 30]; /* where it goes if all are taken */
    for (int i = 0; i < PLACES; i++) {
        if (!places[i].address)
            entry = &places[i];
        else if (places[i].length == row->name_length &&
                 memcmp(places[i].name, row->name, row->name_length) == 0)
            return Py_NewRef(places[i].address);
    }
    PyObject *raw = PyBytes_FromStringAndSize(row->name, row->name_length);
    PyObject *address = raw ? PyObject_CallFunctionObjArgs(state->decode, raw, NULL) : NULL;
    Py_XDECREF(raw);
    if (address) {
        memcpy(entry->name, row->name, row->name_length);
        entry->length = row->name_length;
        set_reference(&entry->address, Py_NewRef(address));
    }
    return address;
}

int addresses_new(State *state) {
    PyObject *anything = PyUnicode_FromString("names"); /* Python hashes it with its own secret */
    Py_hash_t seed = anything ? PyObject_Hash(anything) : -1;
    Py_XDECREF(anything);
    if (seed == -1)
        return -1;
    state->seed = (uint32_t)seed;
    state->addresses = calloc(1, sizeof *state->addresses);
    return state->addresses ? 0 : (PyErr_NoMemory(), -1);
}

void addresses_free(State *state) {
    if (state->addresses)
        for (int at = 0; at < CACHED_ADDRESSES; at++)
            Py_CLEAR(state->addresses->entries[at].address);
    free(state->addresses);
    state->addresses = NULL;
}

/* The address of one row: the program's own, or its name decoded. */
PyObject *address_of(Rows *rows, int index) {
    if (rows->addresses)
        return Py_XNewRef(PyList_GetItem(rows->addresses, rows->rows[index].index));
    return decode_name(rows->state, &rows->rows[index]);
}

/* -- peer by peer */

struct peers { /* one block of memory, which begins with `peer` */
    int *peer;         /* of each row the number of its peer, in the order in which peers first come */
    int *first, *rows; /* of each peer its first row, and how many it has */
    int count, nameless; /* whether the connected peer is one of them */
};

/* Number the peers. One pass; of neighbours from one peer nothing is hashed. -1 without memory. */
static int peers_of(Rows *rows, struct peers *peers) {
    int n = rows->count, buckets = 4;
    while (buckets < 2 * n)
        buckets *= 2;
    int *block = malloc((size_t)(buckets + 3 * n) * sizeof(int));
    if (!block)
        return PyErr_NoMemory(), -1;
    int *first = block + n, *table = first + 2 * n; /* hash -> peer */
    *peers = (struct peers){.peer = block, .first = first, .rows = first + n};
    memset(table, -1, (size_t)buckets * sizeof(int));
    for (int i = 0; i < n; i++) {
        struct row key = rows->rows[i];
        if (i && same_name(&rows->rows[i - 1], &key)) {
            block[i] = block[i - 1];
            peers->rows[block[i]]++;
            continue;
        }
        key.name_length = (uint16_t)significant(&key);
        uint32_t at = hash_name(rows->state, &key) & (uint32_t)(buckets - 1);
        while (table[at] >= 0 && !same_name(&rows->rows[first[table[at]]], &rows->rows[i]))
            at = (at + 1) & (uint32_t)(buckets - 1);
        if (table[at] < 0) {
            first[peers->count] = i;
            peers->rows[peers->count] = 0;
            peers->nameless |= !key.name;
            table[at] = peers->count++;
        }
        block[i] = table[at];
        peers->rows[block[i]]++;
    }
    return 0;
}

/* Rows over the same memory, and none of them yet. */
static Rows *rows_beside(Rows *rows) {
    Rows *beside = rows_new(rows->state);
    if (beside) {
        beside->owner = Py_NewRef(rows->owner);
        beside->addresses = Py_XNewRef(rows->addresses);
        beside->extra = Py_NewRef(OBJECT(rows)); /* names, control messages, views */
        beside->plain = rows->plain;
        beside->cut = rows->cut;
        beside->says = rows->says;
    }
    return beside;
}

/* The same, with room for as many rows. */
static Rows *rows_with_room(Rows *rows) {
    Rows *roomy = rows_beside(rows);
    if (roomy && !(roomy->rows = roomy->memory = malloc((size_t)rows->count * sizeof(struct row)))) {
        Py_DECREF(OBJECT(roomy));
        return (Rows *)PyErr_NoMemory();
    }
    return roomy;
}

/* The same rows in the order of their peers, each peer's in their own: neighbours can then leave as
 * one message. These very rows where there is nothing to gain, and where some are for the connected
 * peer, who may be among the others by name. A new reference, NULL without memory. */
Rows *rows_gathered(Rows *rows) {
    struct peers peers;
    int n = rows->count;
    if (n < 3 || rows->most_segments > 1)
        return (Rows *)Py_NewRef(OBJECT(rows));
    if (peers_of(rows, &peers) < 0)
        return NULL;
    Rows *ordered = rows;
    if (peers.count == 1 || peers.count == n || peers.nameless)
        Py_INCREF(OBJECT(rows));
    else if ((ordered = rows_with_room(rows))) {
        int *place = peers.rows; /* of each peer, where its next row goes */
        for (int p = 0, at = 0, count; p < peers.count; p++, at += count) {
            count = place[p];
            place[p] = at;
        }
        for (int i = 0; i < n; i++)
            ordered->rows[place[peers.peer[i]]++] = rows->rows[i];
        ordered->count = n;
        rows_sum(ordered);
    }
    free(peers.peer);
    return ordered;
}

/* Fill a dict: address -> the rows of that peer. Returns -1 with an exception set.
 *
 * Two names may be one address, such as those that are none: what is a peer here the address says. */
static int part(Rows *rows, const struct peers *peers, PyObject *parts) {
    int status = -1;
    Rows *all = rows_with_room(rows), *found; /* all parts are windows into it */
    Rows **of_peer = all ? malloc((size_t)peers->count * sizeof *of_peer) : NULL;
    if (all && !of_peer)
        PyErr_NoMemory();
    for (int p = 0; of_peer && p < peers->count; p++) {
        PyObject *address = address_of(rows, peers->first[p]);
        found = address ? (Rows *)PyDict_GetItemWithError(parts, address) : NULL;
        if (address && !found && !PyErr_Occurred() && (found = rows_beside(all))) {
            int failed = PyDict_SetItem(parts, address, OBJECT(found)) < 0;
            Py_DECREF(OBJECT(found)); /* which the dict has */
            found = failed ? NULL : found;
        }
        Py_XDECREF(address);
        if (!(of_peer[p] = found))
            goto done;
        found->datagrams += peers->rows[p]; /* rows, until they are counted in full below */
    }
    if (!of_peer)
        goto done;
    struct row *room = all->rows;
    for (int p = 0; p < peers->count; p++)
        if (!of_peer[p]->rows) {
            of_peer[p]->rows = room;
            room += of_peer[p]->datagrams;
        }
    for (int i = 0; i < rows->count; i++) {
        found = of_peer[peers->peer[i]];
        found->rows[found->count++] = rows->rows[i];
    }
    for (int p = 0; p < peers->count; p++)
        rows_sum(of_peer[p]);
    status = 0;
done:
    free(of_peer);
    Py_XDECREF(OBJECT(all));
    return status;
}

/* by_address() -> {address: rows}, in the order in which they first come; each peer's in their own
 * order, over the same memory. Of one peer they are these very rows. */
PyObject *rows_by_address(Rows *rows, PyObject *Py_UNUSED(ignored)) {
    struct peers peers;
    if (peers_of(rows, &peers) < 0)
        return NULL;
    PyObject *parts = PyDict_New(), *address = NULL;
    int status = parts ? 0 : -1;
    if (!status && peers.count > 1)
        status = part(rows, &peers, parts);
    if (!status && rows->count && (peers.count == 1 || PyDict_Size(parts) == 1))
        status = (address = address_of(rows, 0)) ? PyDict_SetItem(parts, address, OBJECT(rows)) : -1;
    Py_XDECREF(address);
    free(peers.peer);
    if (status < 0) {
        Py_XDECREF(parts);
        return NULL;
    }
    return parts;
}

/* -- where they came to */

enum { PACKET_INFO_SIZE = 80 }; /* what IPv4 says takes 32, and what IPv6 says 40 */

/* The control messages of a row that say where it came to, one after the other. Returns how many
 * bytes that are. */
static size_t packet_info(const struct row *row, char *info) {
    struct cmsghdr found;
    const char *said;
    size_t length = 0;
    for (size_t at = 0; (said = next_control(row->control, row->control_length, &at, &found));) {
        size_t size = CMSG_ALIGN(found.cmsg_len);
        if (((found.cmsg_level == IPPROTO_IP && found.cmsg_type == IP_PKTINFO) ||
             (found.cmsg_level == IPPROTO_IPV6 && found.cmsg_type == IPV6_PKTINFO)) &&
            size <= PACKET_INFO_SIZE - length) {
            memset(info + length, 0, size); /* nobody wrote what fills it up */
            memcpy(info + length, said, found.cmsg_len);
            length += size;
        }
    }
    return length;
}

/* Whether it says the same of all of them. */
PyObject *rows_one_way(Rows *rows, void *Py_UNUSED(closure)) {
    char first[PACKET_INFO_SIZE], other[PACKET_INFO_SIZE];
    size_t length = rows->count > 1 && !rows->plain ? packet_info(&rows->rows[0], first) : 0;
    if (rows->count > 1 && !rows->plain)
        for (int i = 1; i < rows->count; i++)
            if (packet_info(&rows->rows[i], other) != length || memcmp(first, other, length) != 0)
                Py_RETURN_FALSE;
    Py_RETURN_TRUE;
}

/* way_back() -> how an answer to the first of them leaves, or None. */
PyObject *rows_way_back(Rows *rows, PyObject *Py_UNUSED(ignored)) {
    char info[PACKET_INFO_SIZE];
    size_t length = rows->count && !rows->plain ? packet_info(&rows->rows[0], info) : 0;
    if (!length)
        Py_RETURN_NONE;
    return PyObject_CallFunction(rows->state->way_back, "y#", info, (Py_ssize_t)length);
}
