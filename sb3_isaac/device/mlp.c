/* The passes of a network, a block of rows at a time, and what callers need to know of the workspace. See mlp.h. */
#include "mlp.h"

/* ---- matrix products ------------------------------------------------------------------------------------------------ */

/* C[m, n] = init[m, n] + sum over k of A[m, k] B[k, n], for R rows and V vectors of columns.
 * A has strides am and ak, the rows of the others follow each other by ldb, ldc and ldi. No init: zeros. */
INLINE void tile(const int R, const int V, long K, const float *A, long am, long ak, const float *B, long ldb, float *C,
                 long ldc, const float *init, long ldi) {
    vec sum[12][2];
    for (int i = 0; i < R; i++)
        for (int j = 0; j < V; j++) sum[i][j] = init ? VEC(init + i * ldi + j * LANES) : (vec){0};
    for (long k = 0; k < K; k++) {
        vec b[2];
        for (int j = 0; j < V; j++) b[j] = VEC(B + k * ldb + j * LANES);
        for (int i = 0; i < R; i++)
            for (int j = 0; j < V; j++) sum[i][j] += A[i * am + k * ak] * b[j];
    }
    for (int i = 0; i < R; i++)
        for (int j = 0; j < V; j++) AT(C + i * ldc + j * LANES) = sum[i][j];
}

/* The same for M rows and N columns, a multiple of LANES: with as many sums at once as there are registers. */
static void gemm(long M, long N, long K, const float *A, long am, long ak, const float *B, long ldb, float *C, long ldc,
                const float *init, long ldi) {
#define TILES(R, V, END)                                                                                               \
    for (; m + R <= END; m += R)                                                                                        \
        tile(R, V, K, A + m * am, am, ak, B + n, ldb, C + m * ldc + n, ldc, init ? init + m * ldi + n : init, ldi);
    long n = 0, m;
    for (; n + 2 * LANES <= N; n += 2 * LANES) {
        m = 0;
        TILES(6, 2, M / 12 * 12) /* so that fours are left */
        TILES(4, 2, M)
        TILES(1, 2, M)
    }
    for (; n < N; n += LANES) {
        m = 0;
        TILES(12, 1, M)
        TILES(4, 1, M)
        TILES(1, 1, M)
    }
#undef TILES
}

/* ---- networks ------------------------------------------------------------------------------------------------------- */

float *take(float **memory, long n) {
    float *start = *memory;
    *memory = (float *)((uintptr_t)*memory + sizeof(float) * whole(n)); /* NULL, too, where sizes are asked for */
    return start;
}

float *lay_out(const net *n, workspace *w, float *memory, int backward) {
    long widest = 0;
    for (int i = 0; i <= n->n_layers; i++) {
        long width = apart(n->widths[i]);
        widest = width > widest ? width : widest;
        w->values[i] = take(&memory, ROWS * width);
    }
    for (int i = 0; i < n->n_layers; i++) {
        long in = n->widths[i], out = n->widths[i + 1], size = by_inputs(n, i) ? in * whole(out) : out * whole(in);
        w->weights_t[i] = take(&memory, in * whole(out));
        w->biases[i] = take(&memory, out);
        w->weights[i] = take(&memory, backward ? out * whole(in) : 0);
        w->weight_grads[i] = take(&memory, backward ? size : 0);
        w->bias_grads[i] = take(&memory, backward ? out : 0);
    }
    for (int k = 0; k < 2; k++) w->grads[k] = take(&memory, backward ? ROWS * widest : 0);
    return memory;
}

static void pad(float *to, long ld_to, const float *from, long rows, long columns, long down, long across) {
    for (long r = 0; r < rows; r++)
        for (long c = 0; c < ld_to; c++) to[r * ld_to + c] = c < columns ? from[r * down + c * across] : 0.0f;
}

void prepare(const net *n, workspace *w, int backward) {
    for (int i = 0; i < n->n_layers; i++) {
        long in = n->widths[i], out = n->widths[i + 1];
        pad(w->weights_t[i], whole(out), n->weights[i], in, out, 1, in);
        pad(w->biases[i], whole(out), n->biases[i], 1, out, 0, 1);
        if (!backward) continue;
        pad(w->weights[i], whole(in), n->weights[i], out, in, in, 1);
        memset(w->weight_grads[i], 0, sizeof(float) * (by_inputs(n, i) ? in * whole(out) : out * whole(in)));
        memset(w->bias_grads[i], 0, sizeof(float) * whole(out));
    }
    memset(w->values[0], 0, sizeof(float) * ROWS * apart(n->widths[0])); /* and so the padding of inputs stays */
}

void fetch_inputs(const net *n, workspace *w, const float *x, long ld, long rows) {
    for (long r = 0; r < rows; r++) memcpy(inputs_of(n, w, r), x + r * ld, sizeof(float) * n->widths[0]);
}

INLINE vec activation(int kind, vec x) {
    if (kind == 1) return tanh_(x);
    if (kind == 2) return larger(x, splat(0.0f));
    if (kind == 3) return select_(x > 0.0f, x, exp_(x) - 1.0f);
    return select_(x > 0.0f, x, 0.01f * x); /* 4, leaky ReLU */
}

INLINE vec slope(int kind, vec y) { /* of the activation whose value is y */
    if (kind == 1) return 1.0f - y * y;
    if (kind == 2) return select_(y > 0.0f, splat(1.0f), splat(0.0f));
    if (kind == 3) return select_(y > 0.0f, splat(1.0f), y + 1.0f);
    return select_(y > 0.0f, splat(1.0f), splat(0.01f));
}

/* Rows in whole tiles: what is in those above, nobody looks at. */
INLINE long fours(long rows) { return (rows + 3) / 4 * 4; }

void forward_block(const net *n, workspace *w, long rows) {
    for (int i = 0; i < n->n_layers; i++) {
        long in = n->widths[i], out = whole(n->widths[i + 1]), ld = apart(out);
        float *y = w->values[i + 1];
        gemm(fours(rows), out, in, w->values[i], apart(in), 1, w->weights_t[i], out, y, ld, w->biases[i], 0);
#define ACTIVATE(KIND)                                                                                                 \
    if (n->kinds[i] == KIND)                                                                                           \
        for (long r = 0; r < rows; r++)                                                                                \
            for (long o = 0; o < out; o += LANES) AT(y + r * ld + o) = activation(KIND, VEC(y + r * ld + o));
        ACTIVATE(1)
        ACTIVATE(2)
        ACTIVATE(3)
        ACTIVATE(4)
    }
}

float *backward_block(const net *n, workspace *w, long rows, int parameters, int inputs) {
    float *g = w->grads[0], *below = w->grads[1];
    for (int i = n->n_layers - 1; i >= 0; i--) {
        long in = n->widths[i], out = n->widths[i + 1], ld_in = apart(in), ld = apart(out);
        const float *y = w->values[i + 1], *x = w->values[i];
#define DESCEND(KIND)                                                                                                  \
    if (n->kinds[i] == KIND)                                                                                           \
        for (long r = 0; r < rows; r++)                                                                                \
            for (long o = 0; o < out; o += LANES) AT(g + r * ld + o) *= slope(KIND, VEC(y + r * ld + o));
        DESCEND(1)
        DESCEND(2)
        DESCEND(3)
        DESCEND(4)
        if (parameters) {
            float *grad = w->weight_grads[i];
            if (by_inputs(n, i))
                gemm(in, whole(out), rows, x, 1, ld_in, g, ld, grad, whole(out), grad, whole(out));
            else
                gemm(out, whole(in), rows, g, 1, ld, x, ld_in, grad, whole(in), grad, whole(in));
            for (long o = 0; o < out; o += LANES) {
                vec sum = VEC(w->bias_grads[i] + o);
                for (long r = 0; r < rows; r++) sum += VEC(g + r * ld + o);
                AT(w->bias_grads[i] + o) = sum;
            }
        }
        if (i > 0 || inputs) {
            gemm(fours(rows), whole(in), out, g, ld, 1, w->weights[i], whole(in), below, ld_in, 0, 0);
            float *above = g;
            g = below;
            below = above;
        }
    }
    return g;
}

void write_gradients(const net *n, const workspace *w) {
    for (int i = 0; i < n->n_layers; i++) {
        long in = n->widths[i], out = n->widths[i + 1], ld = by_inputs(n, i) ? 1 : whole(in), across = by_inputs(n, i) ? whole(out) : 1;
        for (long o = 0; o < out; o++)
            for (long k = 0; k < in; k++) n->weight_grads[i][o * in + k] = w->weight_grads[i][o * ld + k * across];
        memcpy(n->bias_grads[i], w->bias_grads[i], sizeof(float) * out);
    }
}

/* ---- for Python ----------------------------------------------------------------------------------------------------- */

/* Floats of memory for one workspace of each network. */
int64_t net_memory(const net *nets, int64_t n_nets) {
    workspace w;
    float *end = 0;
    for (long i = 0; i < n_nets; i++) end = lay_out(nets + i, &w, end, 1);
    return (uintptr_t)end / sizeof(float);
}

/* Write the outputs (n, out) of inputs x, whose rows of numbers are ld apart. */
void net_outputs(const net *n, const float *x, int64_t ld, int64_t n_rows, float *out, float *memory) {
    workspace w;
    lay_out(n, &w, memory, 0);
    prepare(n, &w, 0);
    for (long start = 0; start < n_rows; start += ROWS) {
        long rows = n_rows - start < ROWS ? n_rows - start : ROWS, width = n->widths[n->n_layers];
        fetch_inputs(n, &w, x + start * ld, ld, rows);
        forward_block(n, &w, rows);
        for (long r = 0; r < rows; r++) memcpy(out + (start + r) * width, outputs_of(n, &w, r), sizeof(float) * width);
    }
}
