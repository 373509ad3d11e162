/* Surrogate derivatives; see reference/surrogates.py, which these repeat operation by operation. */
#ifndef REVEDGE_SURROGATES_H
#define REVEDGE_SURROGATES_H

#include "revedge.h"

/* The order is that of SURROGATES in params.py. */
enum { ATAN = 0, SIGMOID = 1, RECTANGLE = 2, TRIANGLE = 3 };

typedef struct {
    float alpha;
    float slope;  /* pi/2 alpha: atan */
    float height; /* alpha/2: atan */
    float half;   /* 0.5/alpha: rectangle */
} surrogate_t;

INLINE surrogate_t surrogate_of(float alpha) {
    surrogate_t s;
    s.alpha = alpha;
    s.slope = (float)(1.5707963267948966 * (double)alpha);
    s.height = (float)((double)alpha * 0.5);
    s.half = (float)(0.5 / (double)alpha);
    return s;
}

/* exp(y) for y <= 0: range reduction and a polynomial, since no two libraries' exp agree. */
INLINE float exp_of_negative(float y) {
    const float magic = 12582912.0f; /* 1.5 * 2^23: rounds to an integer, half to even */
    y = y > -86.0f ? y : -86.0f;
    const float n = (y * 1.44269502162933349609375f + magic) - magic;
    const float r = (y - n * 0.693359375f) - n * -2.12194441701285541057586669921875e-4f;
    float q = 1.9875691500e-4f;
    q = q * r + 1.3981999507e-3f;
    q = q * r + 8.3334519073e-3f;
    q = q * r + 4.1665795894e-2f;
    q = q * r + 1.6666665459e-1f;
    q = q * r + 5.0000001201e-1f;
    const float e = (q * (r * r) + r) + 1.0f;
    union {
        int32_t bits;
        float value;
    } power;
    power.bits = (int32_t)((uint32_t)((int32_t)n + 127) << 23);
    return e * power.value;
}

/* `kind` is a constant at every call, so nothing of the switch is left in the loop. */
INLINE float surrogate_at(int kind, float d, surrogate_t s) {
    switch (kind) {
    case ATAN: {
        const float u = d * s.slope;
        return (1.0f / (u * u + 1.0f)) * s.height;
    }
    case SIGMOID: {
        const float e = exp_of_negative(-fabsf(d * s.alpha));
        const float q = e + 1.0f;
        return (e * s.alpha) / (q * q);
    }
    case RECTANGLE:
        return fabsf(d) < s.half ? s.alpha : 0.0f;
    default: {
        const float rest = 1.0f - fabsf(d) * s.alpha;
        return (rest > 0.0f ? rest : 0.0f) * s.alpha;
    }
    }
}

#endif
