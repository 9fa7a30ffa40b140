/*
 * What stands around a relay that is measured: its clients, and the far end that echoes everything.
 *
 * Both are one thread, for both have to share one processor: the other one is the relay's. All
 * clients are one socket; client n has the address 127.1.0.0 + n, and a datagram says in its first
 * bytes which client's it is, so an answer at another's address is noticed. The far end is a second
 * socket. Both take and send trains whole (UDP_GRO, UDP_SEGMENT) and many in a call, so that what
 * they cost is little beside what any relay costs. Only a run that checks looks at every byte; all
 * others look at the first datagram of each train and at the lengths.
 *
 * Paced, the thread sleeps between half-milliseconds and sends at the full ones what is due and
 * echoes at the others what came: each relay gets the same bursts from both sides, and none pays
 * for waking up who waits for its datagrams. Otherwise so many datagrams are under way at once: for
 * each that is back another goes, and the thread does not sleep.
 *
 * It is compiled as a shared library, see _load.py, and knows nothing of how figures are made.
 */
#define _GNU_SOURCE
#include "messages.h"
#include "plan.h"

#include <arpa/inet.h>
#include <time.h>

enum {
    MOST_SENT_BYTES = 1 << 18,  /* a call's; what is sent stays in the cache */
    CALLS = 64,                 /* in a row, until it is the other end's turn */
    FIRST_ADDRESS = 0x7f010000, /* 127.1.0.0 */
    MAGIC = 0x5245,
    HALF_MS = 500000,
    STALLED = 100000000,        /* ns without an answer: what is under way is lost */
};

struct head {
    uint16_t magic, run;
    uint32_t client;
    uint64_t number;
};

struct load {
    int near, far;
    uint32_t size, segments, batch;
    struct sockaddr_in relay;
    char *filler; /* what follows a head */
    struct messages questions, echoed, answers;
};

static uint64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

void load_close(struct load *l)
{
    if (!l)
        return;
    free(l->filler);
    free(l->questions.memory);
    free(l->echoed.memory);
    free(l->answers.memory);
    free(l);
}

struct load *load_open(int near, int far, uint16_t relay_port, uint32_t size, uint32_t segments)
{
    struct load *l = calloc(1, sizeof *l);
    if (!l)
        return NULL;
    uint32_t nbytes = size * segments;
    l->near = near, l->far = far, l->size = size, l->segments = segments;
    l->batch = MOST_SENT_BYTES / nbytes;
    l->batch = l->batch < 1 ? 1 : l->batch > SLOTS ? SLOTS : l->batch;
    l->relay.sin_family = AF_INET;
    l->relay.sin_port = htons(relay_port);
    l->relay.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    l->filler = malloc(size);
    if (size < sizeof(struct head) || nbytes > 65507 || !l->filler ||
        messages_open(&l->questions, nbytes) || messages_open(&l->echoed, SLOT_SIZE) ||
        messages_open(&l->answers, SLOT_SIZE)) {
        load_close(l);
        return NULL;
    }
    memset(l->filler, 'x', size);
    for (int i = 0; i < SLOTS; i++)
        l->questions.names[i] = l->relay;
    return l;
}

/* The next trains, from the clients in turn. */
static void ask(struct load *l, const struct plan *p, struct counts *c, uint32_t trains)
{
    struct messages *m = &l->questions;
    for (uint32_t i = 0; i < trains; i++) {
        uint32_t client = p->first + (uint32_t)(c->sent / l->segments % p->clients);
        struct msghdr *h = &m->of[i].msg_hdr;
        struct in_pktinfo source = {.ipi_spec_dst.s_addr = htonl(FIRST_ADDRESS + client)};
        uint16_t size = (uint16_t)l->size;
        h->msg_controllen = 0;
        struct cmsghdr *next =
            put(h, &m->control[i].align, IPPROTO_IP, IP_PKTINFO, &source, sizeof source);
        if (l->segments > 1)
            put(h, next, SOL_UDP, UDP_SEGMENT, &size, sizeof size);
        for (uint32_t segment = 0; segment < l->segments; segment++) {
            struct head head = {MAGIC, p->run, client, c->sent++};
            memcpy((char *)m->iov[i].iov_base + segment * l->size, &head, sizeof head);
        }
    }
    send_all(l->near, m->of, trains);
}

/* Whether a datagram is too late for its own run. */
static int late(const struct plan *p, const char *datagram)
{
    struct head head;
    memcpy(&head, datagram, sizeof head);
    return head.magic == MAGIC && head.run != p->run;
}

/* The far end: back with it. */
static int echo(struct load *l, const struct plan *p, struct counts *c)
{
    struct messages *m = &l->echoed;
    int any = 0;
    for (int call = 0; call < CALLS; call++) {
        int count = receive(l->far, m, SLOT_SIZE);
        for (int i = 0; i < count; i++) {
            struct msghdr *h = &m->of[i].msg_hdr;
            uint32_t nbytes = m->of[i].msg_len, unused, size = look(&m->of[i], &unused);
            uint16_t segment_size = (uint16_t)size;
            m->iov[i].iov_len = nbytes;
            h->msg_controllen = 0;
            if (size < nbytes)
                put(h, &m->control[i].align, SOL_UDP, UDP_SEGMENT, &segment_size,
                    sizeof segment_size);
            if (!late(p, m->iov[i].iov_base))
                c->echoed += size ? (nbytes + size - 1) / size : 1;
        }
        if (count > 0)
            send_all(l->far, m->of, (uint32_t)count), any = 1;
        if (count < SLOTS)
            break;
    }
    return any;
}

/* Whether a datagram is the right one. */
static int right(const struct load *l, const struct plan *p, const struct counts *c,
                 const char *datagram, uint32_t address, uint8_t *seen)
{
    struct head head;
    memcpy(&head, datagram, sizeof head);
    if (head.magic != MAGIC || head.client != address - FIRST_ADDRESS ||
        head.client - p->first >= p->clients || head.number >= c->sent)
        return 0;
    return !seen || (!seen[head.number]++ && !memcmp(datagram + sizeof head, l->filler,
                                                     l->size - sizeof head));
}

/* The clients: count what is back. */
static int take(struct load *l, const struct plan *p, struct counts *c, uint8_t *seen)
{
    struct messages *m = &l->answers;
    int any = 0;
    for (int call = 0; call < CALLS; call++) {
        int count = receive(l->near, m, seen ? SLOT_SIZE : sizeof(struct head));
        for (int i = 0; i < count; i++) {
            uint32_t address = 0, nbytes = m->of[i].msg_len, size = look(&m->of[i], &address);
            uint32_t datagrams = size ? (nbytes + size - 1) / size : 1;
            if (late(p, m->iov[i].iov_base))
                continue;
            c->returned += datagrams;
            if (nbytes != datagrams * l->size)
                c->wrong += datagrams;
            else
                for (uint32_t each = 0; each < (seen ? datagrams : 1); each++)
                    c->wrong += !right(l, p, c, (char *)m->iov[i].iov_base + each * l->size,
                                       address, seen);
        }
        any |= count > 0;
        if (count < SLOTS)
            break;
    }
    return any;
}

/* Do what is planned. Returns 0 or -errno. */
int load_run(struct load *l, const struct plan *p, struct counts *c)
{
    memset(c, 0, sizeof *c);
    uint8_t *seen = p->checks ? calloc(p->most_trains, l->segments) : NULL;
    if (p->checks && !seen)
        return -ENOMEM;
    uint64_t start = now(), heard = start, ticks = 0;
    int64_t lost = 0;
    for (;;) {
        int due_to_echo = p->window || ticks % 2;
        if (due_to_echo && echo(l, p, c) && !p->window)
            heard = now();
        int back = take(l, p, c, seen);
        uint64_t t = now();
        if (back) {
            heard = t;
            c->ns = t - start;
        }
        uint64_t trains = c->sent / l->segments, due = 0;
        if (trains < p->most_trains && t - start < p->most_ns) {
            int64_t under_way = (int64_t)(c->sent - c->returned) - lost;
            if (p->window) {
                if (under_way > 0 && t - heard > STALLED)
                    lost += under_way, under_way = 0, heard = t;
                int64_t room = ((int64_t)p->window - under_way) / (int64_t)l->segments;
                due = room > 0 ? (uint64_t)room : 0;
            } else if (ticks % 2 == 0) {
                uint64_t wanted = (uint64_t)((double)(ticks / 2 + 1) * p->trains_per_ms);
                due = wanted > trains ? wanted - trains : 0;
            }
            if (due > p->most_trains - trains)
                due = p->most_trains - trains;
            for (uint32_t now_due; due; due -= now_due) {
                now_due = due < l->batch ? (uint32_t)due : l->batch;
                ask(l, p, c, now_due);
                if (p->window)
                    break; /* the answers' turn */
            }
        } else if (c->returned >= c->sent || t - heard > p->patience_ns) {
            break;
        }
        ticks++;
        if (!p->window) {
            uint64_t at = start + ticks * HALF_MS;
            struct timespec until = {(time_t)(at / 1000000000), (long)(at % 1000000000)};
            clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
        }
    }
    int64_t missing = (int64_t)(c->sent - c->returned) - lost;
    c->window = p->window > missing ? p->window - (uint64_t)(missing > 0 ? missing : 0) : 0;
    free(seen);
    return 0;
}
