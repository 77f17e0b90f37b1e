/* What lies between the matrix products of a Mixer block on a CPU: LayerNorm, GELU, transposes, residual sums, and their gradients.
 *
 * Compiled twice by native.py: for float32, and with -DBFLOAT16 for bfloat16 tensors; arithmetic is float32 in both. Written for a compiler
 * that vectorises: no intrinsics. Sums over rows are taken in a fixed order, so that equal inputs and threads give equal bits.
 *
 * Letters as in mixer.py: B batch, S patches, C hidden_dim; D the hidden width of an MLP, M its rows.
 * Tensors are contiguous: tokens (B, S, C), "columns" (B, C, S).
 */

#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <math.h>

#ifdef BFLOAT16
typedef uint16_t T;

static inline float load(T x) {
    uint32_t bits = (uint32_t)x << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

static inline T store(float f) { /* to the nearest, ties to even; the NaNs of processors, quiet and without more, stay NaN */
    uint32_t bits;
    memcpy(&bits, &f, 4);
    return (T)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
#else
typedef float T;

static inline float load(T x) { return x; }
static inline T store(float f) { return f; }
#endif

enum { TILE = 16 }; /* rows that are transposed together */

/* Beyond which exponents are cut off. The compiler is not to know it: it would compute what follows for x = 80 apart, and blend everything. */
static const volatile float BOUND = 80.0f;

/* e^x for |x| <= bound, the bound beyond: 2^k e^r with |r| <= ln(2)/2, Taylor's polynomial of degree 7 (error 5e-9). */
static inline float exponential(float x, float bound) {
    const float magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer, which stands in the low bits */
    x = x > -bound ? x : -bound;
    x = x < bound ? x : bound;
    float shifted = x * 1.44269504f + magic, k = shifted - magic;
    float r = x - k * 0.693145752f; /* ln(2) in two parts, the first exact when multiplied by k */
    r = r - k * 1.42860677e-6f;
    float p = 1.0f / 5040;
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    int32_t bits;
    memcpy(&bits, &shifted, 4);
    bits = (bits - 0x4b400000 + 127) << 23;
    float scale;
    memcpy(&scale, &bits, 4);
    return p * scale;
}

/* gelu(x) = x p(x) and its slope p + x p'. Where x is NaN p is some number, and the product stays NaN. */

/* The tanh form: p = (1 + tanh(v/2)) / 2 = 1 / (1 + e^-v), v = 2 sqrt(2/pi) (x + 0.044715 x^3) */
static inline float gelu_tanh(float x, float bound, float *slope) {
    const float a = 1.5957691216057308f, a3 = 0.0713548162726009f; /* a3 = 0.044715 a */
    float p = 1.0f / (1.0f + exponential(-x * (a + a3 * x * x), bound));
    *slope = p + x * p * (1.0f - p) * (a + 3.0f * a3 * x * x);
    return x * p;
}

/* The erf form: p = erfc(-x / sqrt(2)) / 2, by Abramowitz and Stegun 7.1.26 (error 1.5e-7); p' is the normal density */
static inline float gelu_erf(float x, float bound, float *slope) {
    float z = x < 0 ? -x : x, bell = exponential(-0.5f * x * x, bound);
    float t = 1.0f / (1.0f + 0.3275911f * 0.70710678f * z);
    float tail = 1.061405429f;
    tail = tail * t - 1.453152027f;
    tail = tail * t + 1.421413741f;
    tail = tail * t - 0.284496736f;
    tail = tail * t + 0.254829592f;
    tail = 0.5f * tail * t * bell;
    float p = x < 0 ? tail : 1.0f - tail;
    *slope = p + x * bell * 0.3989422804f;
    return x * p;
}

#define EACH_GELU(F) \
    const float bound = BOUND; \
    _Pragma("omp parallel for simd schedule(static)") \
    for (int64_t i = 0; i < n; i++) { \
        float slope; \
        h[i] = store(F(load(u[i]), bound, &slope)); \
    }

void gelu(const T *u, T *h, int64_t n, int64_t erf) {
    if (erf) {
        EACH_GELU(gelu_erf)
    } else {
        EACH_GELU(gelu_tanh)
    }
}

/* Add up the rows that each thread has summed, in the order of the threads. */
static void gather(const float *parts, int threads, int64_t width, float *out) {
    for (int64_t j = 0; j < width; j++) {
        float sum = 0;
        for (int t = 0; t < threads; t++)
            sum += parts[t * width + j];
        out[j] = sum;
    }
}

static float *zeros(int64_t n) { return calloc((size_t)n, sizeof(float)); }

static inline void share(int64_t n, int64_t *from, int64_t *to) { /* the rows of this thread */
    int64_t threads = omp_get_num_threads(), t = omp_get_thread_num();
    *from = n * t / threads;
    *to = n * (t + 1) / threads;
}

#define ROW_BACKWARD(F) \
    const float bound = BOUND; \
    _Pragma("omp simd") \
    for (int64_t j = 0; j < D; j++) { \
        float slope; \
        hi[j] = store(F(load(ui[j]), bound, &slope)); \
        float d = load(di[j]) * slope; \
        di[j] = store(d); \
        sum[j] += d; \
    }

/* u, dh (M, D) -> h = gelu(u), du = dh gelu'(u) written over dh, db (D) = sum of du over the rows */
void gelu_backward(const T *u, T *dh, T *h, float *db, int64_t M, int64_t D, int64_t erf) {
    int threads = omp_get_max_threads();
    float *parts = zeros(threads * D);
#pragma omp parallel num_threads(threads)
    {
        int64_t from, to;
        share(M, &from, &to);
        float *sum = parts + omp_get_thread_num() * D;
        for (int64_t i = from; i < to; i++) {
            const T *ui = u + i * D;
            T *di = dh + i * D, *hi = h + i * D;
            if (erf) {
                ROW_BACKWARD(gelu_erf)
            } else {
                ROW_BACKWARD(gelu_tanh)
            }
        }
    }
    gather(parts, threads, D, db);
    free(parts);
}

/* The mean and 1/deviation of a row of C values, eps 1e-6 (official Flax) */
static inline void moments(const float *row, int64_t C, float *mean, float *rstd) {
    float sum = 0, square = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t c = 0; c < C; c++)
        sum += row[c];
    float m = sum / (float)C;
#pragma omp simd reduction(+ : square)
    for (int64_t c = 0; c < C; c++)
        square += (row[c] - m) * (row[c] - m);
    *mean = m;
    *rstd = 1.0f / sqrtf(square / (float)C + 1e-6f);
}

/* LayerNorm of `rows` rows of C values, in place; the mean and 1/deviation of each row */
static inline void normalise(float *tile, int64_t rows, int64_t C, const float *gamma, const float *beta, float *mean, float *rstd) {
    for (int64_t i = 0; i < rows; i++) {
        float *row = tile + i * C, m, r;
        moments(row, C, &m, &r);
#pragma omp simd
        for (int64_t c = 0; c < C; c++)
            row[c] = (row[c] - m) * r * gamma[c] + beta[c];
        mean[i] = m;
        rstd[i] = r;
    }
}

/* Tokens x -> columns y = LayerNorm(x)^T; mean, rstd (B, S) */
void norm_to_columns(const T *x, const float *gamma, const float *beta, T *y, float *mean, float *rstd, int64_t B, int64_t S, int64_t C) {
#pragma omp parallel
    {
        float *tile = malloc(TILE * C * sizeof(float));
#pragma omp for collapse(2) schedule(static)
        for (int64_t b = 0; b < B; b++)
            for (int64_t s = 0; s < S; s += TILE) {
                int64_t rows = S - s < TILE ? S - s : TILE;
                const T *from = x + (b * S + s) * C;
                for (int64_t i = 0; i < rows * C; i++)
                    tile[i] = load(from[i]);
                normalise(tile, rows, C, gamma, beta, mean + b * S + s, rstd + b * S + s);
                T *to = y + b * C * S + s;
                for (int64_t c = 0; c < C; c++)
                    for (int64_t i = 0; i < rows; i++)
                        to[c * S + i] = store(tile[i * C + c]);
            }
        free(tile);
    }
}

/* Tokens x, columns z -> tokens u = x + scale z^T (scale (B), or null for 1) and y = LayerNorm(u); mean, rstd (B, S) */
void add_columns_and_norm(const T *x, const T *z, const float *scale, const float *gamma, const float *beta, T *u, T *y, float *mean,
                          float *rstd, int64_t B, int64_t S, int64_t C) {
#pragma omp parallel
    {
        float *tile = malloc(TILE * C * sizeof(float));
#pragma omp for collapse(2) schedule(static)
        for (int64_t b = 0; b < B; b++)
            for (int64_t s = 0; s < S; s += TILE) {
                float factor = scale ? scale[b] : 1.0f;
                int64_t rows = S - s < TILE ? S - s : TILE, at = (b * S + s) * C;
                const T *from = z + b * C * S + s;
                for (int64_t c = 0; c < C; c++)
                    for (int64_t i = 0; i < rows; i++)
                        tile[i * C + c] = factor * load(from[c * S + i]);
                for (int64_t i = 0; i < rows * C; i++) {
                    u[at + i] = store(tile[i] + load(x[at + i]));
                    tile[i] = load(u[at + i]);
                }
                normalise(tile, rows, C, gamma, beta, mean + b * S + s, rstd + b * S + s);
                for (int64_t i = 0; i < rows * C; i++)
                    y[at + i] = store(tile[i]);
            }
        free(tile);
    }
}

/* The gradient through a LayerNorm and past it: dx = g + LayerNorm'(x) dy, where dy is tokens, or columns when `columns` is set.
 * dgamma, dbeta (C), and db (C) = sum of `scale` g over the rows: the gradient of a bias that was added to the stream. dx may be g. */
void norm_backward(const T *dy, int columns, const T *x, const float *mean, const float *rstd, const float *gamma, const T *g,
                   const float *scale, T *dx, float *dgamma, float *dbeta, float *db, int64_t B, int64_t S, int64_t C) {
    int threads = omp_get_max_threads();
    float *parts = zeros(threads * 3 * C), *out = malloc(3 * C * sizeof(float));
#pragma omp parallel num_threads(threads)
    {
        int64_t first, last;
        share(B, &first, &last);
        float *tile = malloc(TILE * C * sizeof(float)), *hat = malloc(C * sizeof(float));
        float *sum_gamma = parts + omp_get_thread_num() * 3 * C, *sum_beta = sum_gamma + C, *sum_g = sum_beta + C;
        for (int64_t b = first; b < last; b++) {
            float factor = scale ? scale[b] : 1.0f;
            for (int64_t s = 0; s < S; s += TILE) {
                int64_t rows = S - s < TILE ? S - s : TILE, at = (b * S + s) * C;
                if (columns) {
                    const T *from = dy + b * C * S + s;
                    for (int64_t c = 0; c < C; c++)
                        for (int64_t i = 0; i < rows; i++)
                            tile[i * C + c] = load(from[c * S + i]);
                } else
                    for (int64_t i = 0; i < rows * C; i++)
                        tile[i] = load(dy[at + i]);
                for (int64_t i = 0; i < rows; i++) {
                    float *d = tile + i * C, m = mean[b * S + s + i], r = rstd[b * S + s + i], plain = 0, along = 0;
                    const T *xi = x + at + i * C, *gi = g + at + i * C;
#pragma omp simd reduction(+ : plain, along)
                    for (int64_t c = 0; c < C; c++) {
                        hat[c] = (load(xi[c]) - m) * r;
                        sum_gamma[c] += d[c] * hat[c];
                        sum_beta[c] += d[c];
                        sum_g[c] += factor * load(gi[c]);
                        d[c] *= gamma[c];
                        plain += d[c];
                        along += d[c] * hat[c];
                    }
                    plain /= (float)C;
                    along /= (float)C;
                    T *to = dx + at + i * C;
#pragma omp simd
                    for (int64_t c = 0; c < C; c++)
                        to[c] = store(load(gi[c]) + r * (d[c] - plain - hat[c] * along));
                }
            }
        }
        free(tile);
        free(hat);
    }
    gather(parts, threads, 3 * C, out);
    memcpy(dgamma, out, C * sizeof(float));
    memcpy(dbeta, out + C, C * sizeof(float));
    memcpy(db, out + 2 * C, C * sizeof(float));
    free(parts);
    free(out);
}

/* Tokens g -> columns d = scale g^T, and db (S) = its sum over batch and channels */
void to_columns(const T *g, const float *scale, T *d, float *db, int64_t B, int64_t S, int64_t C) {
    int threads = omp_get_max_threads();
    float *parts = zeros(threads * S);
#pragma omp parallel num_threads(threads)
    {
        int64_t first, last;
        share(B, &first, &last);
        float *sum = parts + omp_get_thread_num() * S, *tile = malloc(TILE * C * sizeof(float));
        for (int64_t b = first; b < last; b++) {
            float factor = scale ? scale[b] : 1.0f;
            for (int64_t s = 0; s < S; s += TILE) {
                int64_t rows = S - s < TILE ? S - s : TILE;
                const T *from = g + (b * S + s) * C;
                for (int64_t i = 0; i < rows; i++) {
                    float total = 0;
#pragma omp simd reduction(+ : total)
                    for (int64_t c = 0; c < C; c++) {
                        tile[i * C + c] = factor * load(from[i * C + c]);
                        total += tile[i * C + c];
                    }
                    sum[s + i] += total;
                }
                T *to = d + b * C * S + s;
                for (int64_t c = 0; c < C; c++)
                    for (int64_t i = 0; i < rows; i++)
                        to[c * S + i] = store(tile[i * C + c]);
            }
        }
        free(tile);
    }
    gather(parts, threads, S, db);
    free(parts);
}

#ifndef BFLOAT16
/* ---- A whole block for inference, products included: for processors whose libraries leave room.
 *
 * Both MLPs are products from the left, w2 gelu(w1 y + b1) + b2, of y with one column for each thing they are applied to: a channel in
 * token mixing, where y is LayerNorm(x) as it lies in memory (a patch in each row), and a token in channel mixing. Columns are taken
 * LANES at a time, as a panel (rows, LANES) that lies together, and few enough panels that all that belongs to them stays in the second
 * level of cache while the weights come by, in tiles of TALL rows, packed in the order in which they are read. So nothing else is
 * transposed but the tokens, and each hidden value goes from its product into the next one.
 */

enum { TALL = 6, LANES = 16, NEAR = 1 << 20, MANY = 8, DEEP = 384 };
/* At a time: NEAR bytes or MANY panels, whatever is less, of them DEEP hidden values of each column */

typedef float vector __attribute__((vector_size(32), aligned(4), may_alias));

static inline int64_t tiles(int64_t rows) { return (rows + TALL - 1) / TALL; }
static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* w (M, K) -> (tiles, K, TALL); what the last tile has too many repeats the last row */
void pack(const float *w, float *packed, int64_t M, int64_t K) {
#pragma omp parallel for schedule(static)
    for (int64_t tile = 0; tile < tiles(M); tile++) {
        const float *row[TALL];
        for (int i = 0; i < TALL; i++)
            row[i] = w + least(tile * TALL + i, M - 1) * K;
        float *to = packed + tile * K * TALL;
        for (int64_t k = 0; k < K; k++)
#pragma GCC unroll 6
            for (int i = 0; i < TALL; i++)
                to[k * TALL + i] = row[i][k];
    }
}

/* out (panels, tiles * TALL, LANES) += w b, of M rows of a packed w, whose tiles are `stride` apart, and b (panels, K, LANES); panels are
 * `b_step` and `out_step` apart */
static void add_product(const float *w, int64_t stride, const float *b, int64_t b_step, float *out, int64_t out_step, int64_t M, int64_t K,
                        int64_t panels) {
    for (int64_t tile = 0; tile < tiles(M); tile++)
        for (int64_t p = 0; p < panels; p++) {
            const float *wk = w + tile * stride, *bk = b + p * b_step;
            float *to = out + p * out_step + tile * TALL * LANES;
            vector sum[TALL][2];
#pragma GCC unroll 6
            for (int i = 0; i < TALL; i++) {
                sum[i][0] = *(vector *)(to + i * LANES);
                sum[i][1] = *(vector *)(to + i * LANES + 8);
            }
            for (int64_t k = 0; k < K; k++, wk += TALL, bk += LANES) {
                vector b0 = *(const vector *)bk, b1 = *(const vector *)(bk + 8);
#pragma GCC unroll 6
                for (int i = 0; i < TALL; i++) {
                    sum[i][0] += wk[i] * b0;
                    sum[i][1] += wk[i] * b1;
                }
            }
#pragma GCC unroll 6
            for (int i = 0; i < TALL; i++) {
                *(vector *)(to + i * LANES) = sum[i][0];
                *(vector *)(to + i * LANES + 8) = sum[i][1];
            }
        }
}

static void fill(float *panels, int64_t step, const float *bias, int64_t rows, int64_t count) {
    for (int64_t p = 0; p < count; p++)
        for (int64_t i = 0; i < rows; i++)
            for (int j = 0; j < LANES; j++)
                panels[p * step + i * LANES + j] = bias[i];
}

typedef struct { /* of K values into K by D hidden ones; the weights are packed */
    const float *w1, *b1, *w2, *b2;
    int64_t K, D, depth, panels; /* hidden values of a column, and panels, that are computed at a time */
} MLP;

static MLP mlp_of(const float *w1, const float *b1, const float *w2, const float *b2, int64_t K, int64_t D) {
    int64_t parts = (D + DEEP - 1) / DEEP, depth = tiles((D + parts - 1) / parts) * TALL;
    int64_t fit = NEAR / ((2 * K + depth) * LANES * (int64_t)sizeof(float));
    return (MLP){w1, b1, w2, b2, K, D, depth, fit < 1 ? 1 : least(fit, MANY)};
}

static inline int64_t out_step(const MLP *m) { return tiles(m->K) * TALL * LANES; }

/* panels y (count, K, LANES), each K * LANES from the next -> out = w2 gelu(w1 y + b1) + b2, each out_step from the next */
static void apply(const MLP *m, const float *y, float *h, float *out, int64_t count, int64_t erf) {
    fill(out, out_step(m), m->b2, m->K, count);
    for (int64_t d = 0; d < m->D; d += m->depth) {
        int64_t depth = least(m->depth, m->D - d), step = m->depth * LANES;
        fill(h, step, m->b1 + d, depth, count);
        add_product(m->w1 + d * m->K, m->K * TALL, y, m->K * LANES, h, step, depth, m->K, count);
        const float bound = BOUND;
        for (int64_t p = 0; p < count; p++) {
            float *u = h + p * step, slope;
            if (erf) {
#pragma omp simd private(slope)
                for (int64_t i = 0; i < depth * LANES; i++)
                    u[i] = gelu_erf(u[i], bound, &slope);
            } else {
#pragma omp simd private(slope)
                for (int64_t i = 0; i < depth * LANES; i++)
                    u[i] = gelu_tanh(u[i], bound, &slope);
            }
        }
        add_product(m->w2 + d * TALL, m->D * TALL, h, step, out, out_step(m), m->K, depth, count);
    }
}

/* Tokens x -> out, the block of equation (1). The four matrices are packed; mean, rstd (B, S). */
void infer_block(const float *x, const float *gamma1, const float *beta1, const float *w1, const float *b1, const float *w2, const float *b2,
                 const float *gamma2, const float *beta2, const float *w3, const float *b3, const float *w4, const float *b4, float *mean,
                 float *rstd, float *out, int64_t B, int64_t S, int64_t C, int64_t DS, int64_t DC, int64_t erf) {
    MLP tokens = mlp_of(w1, b1, w2, b2, S, DS), channels = mlp_of(w3, b3, w4, b4, C, DC);
    int64_t each = B * ((C + LANES - 1) / LANES) / omp_get_max_threads(); /* panels of a thread in token mixing */
    tokens.panels = each < 1 ? 1 : least(tokens.panels, each);
    int64_t wide = tokens.panels * LANES, groups = (C + wide - 1) / wide, rows = B * S;
    size_t size = 0; /* of what a thread needs for y, h and out */
    for (int i = 0; i < 2; i++) {
        const MLP *m = i ? &channels : &tokens;
        size_t s = (size_t)(m->panels * ((m->K + m->depth) * LANES + out_step(m))) * sizeof(float);
        size = s > size ? s : size;
    }
#pragma omp parallel
    {
        float *y = aligned_alloc(64, (size + 63) / 64 * 64);
#pragma omp for schedule(static)
        for (int64_t t = 0; t < rows; t++)
            moments(x + t * C, C, mean + t, rstd + t);

        float *h = y + tokens.panels * S * LANES, *z = h + tokens.panels * tokens.depth * LANES;
#pragma omp for collapse(2) schedule(static)
        for (int64_t b = 0; b < B; b++)
            for (int64_t g = 0; g < groups; g++) {
                int64_t c0 = g * wide, count = least(tokens.panels, (C - c0 + LANES - 1) / LANES);
                for (int64_t p = 0; p < count; p++)
                    for (int64_t s = 0; s < S; s++) {
                        int64_t t = b * S + s, c = c0 + p * LANES, there = least(LANES, C - c);
                        float *to = y + (p * S + s) * LANES;
                        for (int64_t j = 0; j < there; j++)
                            to[j] = (x[t * C + c + j] - mean[t]) * rstd[t] * gamma1[c + j] + beta1[c + j];
                        for (int64_t j = there; j < LANES; j++)
                            to[j] = 0;
                    }
                apply(&tokens, y, h, z, count, erf);
                for (int64_t p = 0; p < count; p++)
                    for (int64_t s = 0; s < S; s++) {
                        int64_t at = (b * S + s) * C + c0 + p * LANES, there = least(LANES, C - c0 - p * LANES);
                        for (int64_t j = 0; j < there; j++)
                            out[at + j] = x[at + j] + z[p * out_step(&tokens) + s * LANES + j];
                    }
            }

        h = y + channels.panels * C * LANES, z = h + channels.panels * channels.depth * LANES;
        int64_t first, last;
        share((rows + LANES - 1) / LANES, &first, &last);
        for (int64_t p0 = first; p0 < last; p0 += channels.panels) {
            int64_t count = least(channels.panels, last - p0);
            for (int64_t t = p0 * LANES; t < (p0 + count) * LANES; t++) {
                float *to = y + (t / LANES - p0) * C * LANES + t % LANES, m, r;
                if (t < rows) {
                    const float *row = out + t * C;
                    moments(row, C, &m, &r);
                    for (int64_t c = 0; c < C; c++)
                        to[c * LANES] = (row[c] - m) * r * gamma2[c] + beta2[c];
                } else
                    for (int64_t c = 0; c < C; c++)
                        to[c * LANES] = 0;
            }
            apply(&channels, y, h, z, count, erf);
            for (int64_t t = p0 * LANES; t < least((p0 + count) * LANES, rows); t++) {
                const float *from = z + (t / LANES - p0) * out_step(&channels) + t % LANES;
                for (int64_t c = 0; c < C; c++)
                    out[t * C + c] += from[c * LANES];
            }
        }
        free(y);
    }
}
#endif
