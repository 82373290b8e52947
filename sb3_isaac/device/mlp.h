/* Small multi-layer perceptrons on a CPU, a block of rows at a time: what a block needs stays in the core's cache from the
 * observations to the gradients. The plain path, which does the same in PyTorch, is device/fast_mlp.py.
 *
 * The three products of a layer (forwards, backwards, gradient of the weights) are one function, gemm, on tiles of six rows
 * and two vectors that stay in registers, as in Goto and van de Geijn, "Anatomy of high-performance matrix multiplication"
 * (https://doi.org/10.1145/1356052.1356053). The vectors are an extension that GCC and Clang share; the compiler knows what
 * the processor has. */
#ifndef SB3_ISAAC_MLP_H
#define SB3_ISAAC_MLP_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#ifndef LANES
#ifdef __AVX512F__
#define LANES 16
#else
#define LANES 8
#endif
#endif
#define ROWS 48 /* of a block, a multiple of LANES */
#define MAX_LAYERS 8

#define INLINE static inline __attribute__((always_inline))
#define SHARED __attribute__((visibility("hidden"))) /* among the C files, not with the rest of the process */

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
#define AT(p) (*(vec *)(p))
#define VEC(p) (*(const vec *)(p))

INLINE vec splat(float x) { return x - (vec){0}; }

INLINE vec select_(ivec mask, vec yes, vec no) { return (vec)((mask & (ivec)yes) | (~mask & (ivec)no)); }

/* The first one, where it is NaN */
INLINE vec smaller(vec x, vec y) {
    for (int i = 0; i < LANES; i++) x[i] = y[i] < x[i] ? y[i] : x[i];
    return x;
}
INLINE vec larger(vec x, vec y) {
    for (int i = 0; i < LANES; i++) x[i] = y[i] > x[i] ? y[i] : x[i];
    return x;
}

INLINE float sum_of(vec x) {
    float sum = 0.0f;
    for (int i = 0; i < LANES; i++) sum += x[i];
    return sum;
}

/* exp(x) to two units in the last place: 2^n times a polynomial in r, x = n ln 2 + r with |r| <= ln 2 / 2. NaN stays NaN, and
 * what is too large for float32 is its largest number. */
INLINE vec exp_(vec x) {
    const vec round = splat(12582912.0f); /* 1.5 * 2^23 */
    vec y = larger(smaller(x, splat(88.72283f)), splat(-87.33654f));
    vec n = y * 1.44269504f + round; /* in its last bits, where the next line's shift finds it */
    ivec exponent = (ivec)n << 23;
    n -= round;
    vec r = y - n * 0.693359375f + n * 2.12194440e-4f, p = splat(1.0f / 5040.0f);
    p = p * r + 1.0f / 720.0f;
    p = p * r + 1.0f / 120.0f;
    p = p * r + 1.0f / 24.0f;
    p = p * r + 1.0f / 6.0f;
    p = p * r + 0.5f;
    p = p * r * r + r + 1.0f;
    return select_(x == x, (vec)((ivec)p + exponent), x);
}

/* tanh(x) = x P(x^2) / Q(x^2) to 3e-7, a least-squares fit; from 8.4 on it is 1 in float32. NaN stays NaN. */
INLINE vec tanh_(vec x) {
    vec y = larger(smaller(x, splat(8.4f)), splat(-8.4f)), t = y * y;
    vec p = t * 1.44583599e-8f + 2.13801565e-5f, q = t * 8.22017333e-7f + 3.36146606e-4f;
    p = p * t + 3.54164154e-3f, q = q * t + 2.60515324e-2f;
    p = p * t + 1.34196004e-1f, q = q * t + 4.67529242e-1f;
    p = p * t + 1.0f, q = q * t + 1.0f;
    return larger(smaller(y * p / q, splat(1.0f)), splat(-1.0f));
}

/* ---- networks ------------------------------------------------------------------------------------------------------- */

typedef struct { /* native_mlp.py has the same */
    int32_t n_layers;
    int32_t widths[MAX_LAYERS + 1]; /* the inputs' first */
    int32_t kinds[MAX_LAYERS];      /* of activation, fast_mlp.ACTIVATIONS */
    const float *weights[MAX_LAYERS], *biases[MAX_LAYERS]; /* (out, in) and (out,) of each layer */
    float *weight_grads[MAX_LAYERS], *bias_grads[MAX_LAYERS]; /* written by write_gradients */
} net;

typedef struct {
    float *weights_t[MAX_LAYERS];  /* (in, out) */
    float *weights[MAX_LAYERS];    /* (out, in) */
    float *biases[MAX_LAYERS];     /* (out,) */
    float *values[MAX_LAYERS + 1]; /* (ROWS, width): the inputs and each layer's outputs */
    float *grads[2];               /* (ROWS, widest): on their way down, in turns */
    float *weight_grads[MAX_LAYERS], *bias_grads[MAX_LAYERS]; /* (in, out) where that is the shorter way, else (out, in) */
} workspace;

/* Rows are padded with zeros to whole vectors */
INLINE long whole(long n) { return (n + LANES - 1) / LANES * LANES; }
/* and lie somewhat apart where else they would meet in the cache, which a power of two does. */
INLINE long apart(long n) { return whole(n) % 64 ? whole(n) : whole(n) + LANES; }
INLINE int by_inputs(const net *n, int i) { return n->widths[i] < n->widths[i + 1]; }

INLINE float *inputs_of(const net *n, const workspace *w, long row) { return w->values[0] + row * apart(n->widths[0]); }
INLINE float *outputs_of(const net *n, const workspace *w, long row) {
    return w->values[n->n_layers] + row * apart(n->widths[n->n_layers]);
}

/* Where the loss's gradient with respect to the outputs goes. */
INLINE float *output_grads_of(const net *n, const workspace *w, long row) {
    return w->grads[0] + row * apart(n->widths[n->n_layers]);
}

/* ---- what mlp.c does with them ---------------------------------------------------------------------------------------- */

/* So many floats of memory, which then begins behind them. */
SHARED float *take(float **memory, long n);
/* Lay out a network's workspace in memory. Returns where it ends: lay_out of NULL tells how much there must be. */
SHARED float *lay_out(const net *n, workspace *w, float *memory, int backward);
/* Copy the parameters, and begin with gradients of zero. */
SHARED void prepare(const net *n, workspace *w, int backward);
/* Copy rows of inputs, ld apart. */
SHARED void fetch_inputs(const net *n, workspace *w, const float *x, long ld, long rows);
/* Outputs of at most ROWS rows of inputs. */
SHARED void forward_block(const net *n, workspace *w, long rows);
/* After forward_block, with the loss's gradient with respect to the outputs in grads[0], see output_grads_of.
 * parameters: add the parameters' gradients. inputs: return the gradient with respect to the inputs, as inputs_of has them. */
SHARED float *backward_block(const net *n, workspace *w, long rows, int parameters, int inputs);
/* Copy the gradients to where the network has them. */
SHARED void write_gradients(const net *n, const workspace *w);

#endif
