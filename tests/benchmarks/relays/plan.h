/*
 * What a run of load.c is told, and what it tells; _load.py has the same structures.
 */
#ifndef PLAN_H
#define PLAN_H

#include <stdint.h>

/* What a run is to do. */
struct plan {
    uint32_t first, clients; /* their numbers; they send a train each in turn */
    uint32_t window;         /* datagrams under way; 0: paced */
    uint16_t run;            /* its number: what comes from another one does not count */
    uint16_t checks;         /* every byte */
    double trains_per_ms;    /* paced */
    uint64_t most_trains, most_ns;
    uint64_t patience_ns; /* at the end, without an answer: nothing more comes */
};

/* What it did, in datagrams. */
struct counts {
    uint64_t sent, echoed, returned, wrong;
    uint64_t ns; /* to the last answer */
    uint64_t window; /* what is left of it: less what was lost since it last was whole */
};

#endif
