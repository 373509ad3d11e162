/* The windows of a pool over planes of H * W: OH * OW of them. */
#ifndef REVEDGE_WINDOW_H
#define REVEDGE_WINDOW_H

#include "revedge.h"

typedef struct {
    int64_t H, W, OH, OW, kh, kw, sh, sw, ph, pw;
} window_t;

INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

INLINE int is_halving(const window_t *w) {
    return w->kh == 2 && w->kw == 2 && w->sh == 2 && w->sw == 2 && w->ph == 0 && w->pw == 0;
}

/* Rows and columns of the plane that window (i, j) covers; padding is cut off. */
typedef struct {
    int64_t from, to, start, stop;
} cover_t;

INLINE cover_t cover_of(const window_t *w, int64_t i, int64_t j) {
    const int64_t top = i * w->sh - w->ph, left = j * w->sw - w->pw;
    return (cover_t){larger(top, 0), smaller(top + w->kh, w->H), larger(left, 0),
                     smaller(left + w->kw, w->W)};
}

#endif
